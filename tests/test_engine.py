"""The engine is checked at import; checkpoints load safely: what fairseq writes, and no foreign pickle."""

import argparse
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.data import TokenBlockDataset, bucket_pad_length_dataset, data_utils
from foreign import Foreign

import fairseq_gpam
from fairseq_gpam import checkpoint_types


class ForeignThroughOs:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


REPOSITORY = Path(fairseq_gpam.__path__[0]).parent

FAST_PATH = """
import torch
class TransformerEncoderLayerBase:
    def forward(self, x):
        return torch._transformer_encoder_layer_fwd(x)
"""
FAKES = {
    "missing": {"fairseq/__init__.py": "raise ModuleNotFoundError(\"No module named 'fairseq'\")"},
    "broken": {"fairseq/__init__.py": "raise ImportError('undefined symbol')"},
    # The errors of fairseq 0.12.2 on Python 3.11, and of any fairseq with numpy 2.
    "0.12.2 as it fails": {"fairseq/__init__.py": "raise ValueError('mutable default, use default_factory')"},
    "beside numpy 2": {"fairseq/__init__.py": "raise AttributeError('no attribute compat')"},
    "0.12.2": {
        "torch/__init__.py": "",
        "fairseq/__init__.py": "",
        "fairseq/modules/__init__.py": "",
        "fairseq/modules/transformer_layer.py": FAST_PATH,
    },
}


def import_beside(fake, folder):
    for path, text in FAKES[fake].items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}"}
    command = [sys.executable, "-c", "import fairseq_gpam"]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)


@pytest.mark.parametrize("fake", FAKES)
def test_an_unusable_fairseq_is_refused_in_one_sentence_that_says_what_to_install(fake, tmp_path):
    result = import_beside(fake, tmp_path)
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("fairseq_gpam.engine.EngineError: ")
    assert message.count(". ") <= 1 and message.endswith(".")
    assert "pip install 've-fairseq==0.12.3'" in message
    assert "pip install 'fairseq-fixed==0.12.3.1'" in message
    if fake == "0.12.2":
        assert "pip uninstall fairseq" in message and "bypasses custom attention" in message
    else:
        assert "fairseq_gpam needs" in message


def test_the_installed_engine_calls_our_attention_at_inference():
    from tiny import OURS, build, logits, translation_input

    from fairseq_gpam.modules import attention_modules

    model = build("translation", OURS["translation"]).eval()
    called = set()
    for index, attention in enumerate(attention_modules(model)):
        attention.register_forward_hook(lambda *_, index=index: called.add(index))
    with torch.no_grad():
        logits(model, translation_input())
    assert called == set(range(6))


def checkpoint(folder, **extra):
    path = folder / "checkpoint.pt"
    torch.save({"args": argparse.Namespace(arch="transformer_gpam"), "model": {}, "cfg": None, **extra}, path)
    return path


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i4", "i8", "u1", "?"])
def test_namespaces_and_numpy_numbers_load(kind, tmp_path):
    """What translation checkpoints hold, with --eval-bleu too."""
    scalar = np.dtype(kind).type(1)
    path = checkpoint(tmp_path, extra_state={"score": scalar, "counts": np.array([1, 0, 1], dtype=kind)})
    state = torch.load(path, weights_only=True)
    assert state["args"].arch == "transformer_gpam"
    assert state["extra_state"]["score"] == scalar
    assert state["extra_state"]["counts"].dtype == np.dtype(kind)


@pytest.mark.parametrize("major", [1, 2])
def test_numpy_numbers_of_either_major_version_load(major, tmp_path):
    scores = {"score": np.float64(0.5), "counts": np.array([1, 2])}
    path, rewritten = checkpoint(tmp_path, extra_state=scores), tmp_path / "rewritten.pt"
    place = b"numpy.core.multiarray" if major == 1 else b"numpy._core.multiarray"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(rewritten, "w") as new:
        for name in old.namelist():
            new.writestr(name, re.sub(rb"numpy\._?core\.multiarray", place, old.read(name)))
    found = torch.load(rewritten, weights_only=True)["extra_state"]
    assert found["score"] == scores["score"] and (found["counts"] == scores["counts"]).all()


def test_what_numpy_2_took_from_fairseq_is_there():
    sizes = np.random.default_rng(1).integers(1, 50, 200)
    for module in (data_utils, bucket_pad_length_dataset):
        buckets = module.get_buckets(sizes, 7)
        assert set(buckets) <= set(sizes) and buckets[-1] == sizes.max() and (np.diff(buckets) > 0).all()
    blocks = TokenBlockDataset([torch.arange(n) for n in sizes], sizes, None, pad=0, eos=1, break_mode="eos")
    assert list(blocks.sizes) == list(sizes)


def test_torchs_safe_loading_cannot_be_switched_off(monkeypatch, caplog):
    assert "weights_only=False" not in "".join(
        path.read_text(encoding="utf-8") for path in (REPOSITORY / "fairseq_gpam").rglob("*.py")
    )
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    checkpoint_types.allow()
    assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ and "is ignored" in caplog.text


LEAVES = """
import atexit, sys
import torch.distributed
atexit.register(lambda: print(torch.distributed.is_initialized()))
if sys.argv[2] == "plugin":
    import fairseq_gpam
torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
"""


@pytest.mark.slow  # processes that import PyTorch
@pytest.mark.parametrize("plugin, stays", [("plugin", "False"), ("stock", "True")])
def test_a_gloo_process_group_is_left_before_the_interpreter_ends(plugin, stays, tmp_path):
    command = [sys.executable, "-c", LEAVES, str(tmp_path / "store"), plugin]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == [stays]


@pytest.mark.slow
@pytest.mark.parametrize("foreign", [Foreign, ForeignThroughOs])
def test_a_foreign_pickle_is_refused_and_nothing_is_executed(foreign, tmp_path):
    marker = tmp_path / "executed"
    path = checkpoint(tmp_path, extra_state=foreign(str(marker)))
    with pytest.raises(Exception, match="could run code"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists(), "the pickle of this test must be a live one"


@pytest.mark.slow
def test_nothing_that_can_run_code_is_allowed_by_name():
    allowed = {getattr(kind, "__name__", str(kind)) for kind in torch.serialization.get_safe_globals()}
    assert "Namespace" in allowed
    assert not allowed & {"system", "eval", "exec", "Popen", "getattr", "import_module", "partial"}
