"""The one loader of checkpoints: nothing in a file runs, and a damaged file is refused or loads as it was."""

import argparse
import ast
import pickle
import random
import re
import sys
from collections import OrderedDict
from pathlib import Path

import fairseq
import numpy as np
import pytest
import torch
from fairseq import checkpoint_utils, utils
from fairseq.criterions import ctc
from fairseq.models import ARCH_CONFIG_REGISTRY, MODEL_DATACLASS_REGISTRY
from foreign import Foreign
from omegaconf import OmegaConf
from quick import EXAMPLES

from fairseq_gpam.checkpoints import EVALUATED, EVALUATING, CheckpointError, check_settings, evaluate, is_literal, load


def same(state, other):
    return state.keys() == other.keys() and all(
        torch.equal(state[name]["weight"], other[name]["weight"]) if name == "model" else state[name] == other[name]
        for name in other
    )


CASES = 200


EVALUATORS = re.compile(r"eval|(\w+\.)?eval_(str_list|str_dict|bool)")


FORMS = [
    *("{}", "[{}]", "  {}", "(1, {})", "[1, 2] + [{}]", "{{1: {}}}", "{{{}: 1}}", "-{}", "f'{{{}}}'", "[{}][0]"),
    *("[x for x in [{}]]", "(lambda: {})()", "1 if {} else 2", "{} or 1", "[*[{}]]", "{{**{{}}, 2: {}}}"),
]


def test_every_setting_that_the_engine_evaluates_is_known():
    evaluated = set()
    for path in Path(fairseq.__path__[0]).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "examples" in path.parts or "eval" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and node.args and EVALUATORS.fullmatch(ast.unparse(node.func)):
                evaluated.add(ast.unparse(node.args[0]).rpartition(".")[2])
    assert len(evaluated) > 20
    # These are arguments of functions that evaluate them, of parsers of command lines, and lines of a data file.
    assert evaluated - {"x", "uf", "strip()"} <= EVALUATED


def test_the_defaults_of_the_engine_are_allowed():
    for model, dataclass in MODEL_DATACLASS_REGISTRY.items():
        check_settings(model, OmegaConf.structured(dataclass))
    for name, architecture in ARCH_CONFIG_REGISTRY.items():
        settings = argparse.Namespace()
        try:
            architecture(settings)
        except Exception:  # some presets read settings that only a parser gives
            continue
        check_settings(name, settings)


def code(made, marker):
    """Python that leaves the file `marker` if it is evaluated, in one of many forms."""
    action = made.choice([f"__import__('pathlib').Path({marker!r}).touch()", f"open({marker!r}, 'w')"])
    text = made.choice(FORMS).format(action)
    return made.choice([text, text, text.encode(), torch.tensor(list(text.encode()), dtype=torch.uint8).numpy()])


def nested(made, name, value):
    """Settings that hold the setting somewhere: in namespaces, dictionaries and lists."""
    settings = {name: value, "dropout": 0.1}
    for _ in range(made.randrange(3)):
        settings = made.choice([settings, argparse.Namespace(**settings)])
        settings = {made.choice(["w2v_args", "model", "nested"]): made.choice([settings, [settings]]), "seed": 1}
    return made.choice([settings, argparse.Namespace(**settings)])


@pytest.mark.parametrize("task", ["args", "cfg"])
def test_settings_that_would_run_are_refused_by_name_and_nothing_runs(tmp_path, task):
    made, marker = random.Random(1), tmp_path / "marker"
    for number in range(EXAMPLES):
        name = made.choice(sorted(EVALUATED))
        settings = nested(made, name, code(made, str(marker)))
        path = tmp_path / "made.pt"
        state = {"model": {"weight": torch.zeros(1)}, "optimizer_history": [{"num_updates": 1}], task: settings}
        torch.save(state, path)
        with pytest.raises(CheckpointError, match=rf"fairseq would run its setting {name} = ") as refusal:
            check_settings(path, load(path)[task])
        assert "\n" not in str(refusal.value), number
    assert not marker.exists()


class Reduced:
    """What a pickle of these parts makes."""

    def __init__(self, *parts):
        self.parts = parts

    def __reduce__(self):
        return self.parts


def hiding(method, name, value):
    """A dictionary that shows nothing by one of its methods, and holds a setting."""
    return Reduced(OrderedDict, (), {method: OrderedDict}, None, iter([(name, value)]))


def test_settings_that_hide_others_are_refused(tmp_path):
    made, path = random.Random(4), tmp_path / "made.pt"
    for _ in range(EXAMPLES):
        name, value = made.choice(sorted(EVALUATED)), "print()"
        broken = made.choice([name + made.choice("\n\r\u2028"), made.choice("\n\x00") + name])
        hidden = hiding(made.choice(["items", "values", "keys", "get", "__iter__"]), name, value)
        settings = made.choice([nested(made, "decoder", hidden), nested(made, broken, value)])
        state = {"model": {"weight": torch.zeros(1)}, "optimizer_history": [{"num_updates": 1}], "args": settings}
        torch.save(state, path)
        with pytest.raises(CheckpointError, match=r"could hide another|would run its setting"):
            check_settings(path, load(path)["args"])
    with pytest.raises(CheckpointError, match="its settings hold <class"):
        check_settings(path, argparse.Namespace(items=OrderedDict))


def test_the_engine_evaluates_literals_alone(tmp_path):
    """Wherever a text comes from: what is hidden from the check of a file meets this one."""
    evaluating = set()
    for path in Path(fairseq.__path__[0]).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "examples" not in path.parts and "eval(" in text:
            calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
            if any(isinstance(call.func, ast.Name) and call.func.id in ("eval", "exec") for call in calls):
                evaluating.add(".".join(path.relative_to(fairseq.__path__[0]).with_suffix("").parts))
    assert evaluating == set(EVALUATING)
    assert all(sys.modules[f"fairseq.{name}"].eval is evaluate for name in evaluating)
    assert evaluate(" [(512, 10)] + [(512, 3)] * 2") == [(512, 10), (512, 3), (512, 3)]
    assert utils.eval_bool(True) is False and utils.eval_str_list("[4, 8]", int) == [4, 8]
    made, marker = random.Random(5), tmp_path / "marker"
    for _ in range(EXAMPLES):
        with pytest.raises(CheckpointError, match="fairseq would run it as Python"):
            evaluate(code(made, str(marker)))
    assert not marker.exists()


def hidden_in_an_interpolation(code):
    model = {"_name": "transformer_lm", "decoder_layers": 1, "max_target_positions": 8, "character_embeddings": True}
    return {"model": {**model, "character_filters": "'${evil}'"}, "evil": f"'+str({code})+'"}


def hidden_in_attributes_of_a_tensor(code):
    settings, model, task = torch.zeros(1), OrderedDict(_name="data2vec_multi"), OrderedDict()
    vars(model).update(_name="fconv", encoder_layers=code)
    vars(task).update(task="audio_pretraining")
    settings.task, settings.model = task, model
    return {"model": argparse.Namespace(_name="wav2vec_ctc", w2v_args=settings, normalize=True)}


def hidden_in_settings_of_another_model(code):
    settings = {"conv_feature_layers": "${bpe.encoder_layers}", "bpe": f'{{encoder_layers: "{code}"}}'}
    other = argparse.Namespace(arch="wav2vec2", task="audio_pretraining", normalize=False, **settings)
    return {"model": argparse.Namespace(_name="wav2vec_ctc", w2v_args=other, normalize=False, data="")}


HIDDEN = [hidden_in_an_interpolation, hidden_in_attributes_of_a_tensor, hidden_in_settings_of_another_model]


@pytest.mark.parametrize("hidden", HIDDEN)
def test_code_that_no_setting_shows_does_not_run(tmp_path, hidden):
    marker, path = tmp_path / "marker", tmp_path / "made.pt"
    (tmp_path / "dict.txt").write_text("w1 1\nw2 1\n")
    optimizer = {"criterion_name": "", "optimizer_name": "", "lr_scheduler_state": {}, "num_updates": 0}
    state = {"args": None, "optimizer_history": [optimizer], "extra_state": {"train_iterator": None}}
    task = {"_name": "language_modeling", "data": str(tmp_path)}
    cfg = {"task": task, **hidden(f"__import__('pathlib').Path('{marker}').touch()")}
    torch.save({**state, "model": {"weight": torch.zeros(1)}, "cfg": cfg}, path)
    with pytest.raises((CheckpointError, ValueError), match="refused"):
        checkpoint_utils.load_model_ensemble_and_task([str(path)], {"data": str(tmp_path)})
    assert not marker.exists()


def test_code_in_a_criterion_that_an_interpolation_makes_does_not_run(tmp_path):
    marker = tmp_path / "marker"
    touch = f"__import__('pathlib').Path('{marker}').touch()"
    made = OmegaConf.create({"criterion": "${oc.create:${text}}", "text": f'{{wer_args: "{touch}"}}'})
    with pytest.raises(CheckpointError, match="would run it"):
        ctc.eval(made.criterion.wer_args)
    assert not marker.exists()


def test_numpys_own_constructors_do_not_reach_memory(tmp_path):
    def kind(name):
        return Reduced(np.dtype, (name,))

    reconstruct = np._core.multiarray._reconstruct if hasattr(np, "_core") else np.core.multiarray._reconstruct
    objects = Reduced(reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), kind("O"), False, ["text"]))
    pointers = Reduced(np.ndarray, ((1,), kind("i8"), b"12345678"))
    unlike = Reduced(np.dtype, ("f8", False, True), (3, ">", None, None, None, -1, -1, 63))
    longer = Reduced(reconstruct, (np.ndarray, (0,), b"b"), (1, (9,), kind("i8"), False, b"12345678"))
    for attack in (objects, pointers, kind("O"), kind("V8"), kind("i8,O"), unlike, longer):
        torch.save({"model": {}, "best_loss": 1, "args": argparse.Namespace(), "x": attack}, tmp_path / "made.pt")
        with pytest.raises(CheckpointError, match=r"is refused|is damaged"):
            load(tmp_path / "made.pt")


def test_an_array_is_filled_once_and_saved_as_numpys(tmp_path):
    torch.save({"x": np.arange(6.0).reshape(2, 3)}, tmp_path / "made.pt")
    array = torch.load(tmp_path / "made.pt", weights_only=True)["x"]
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]
    _, _, state = np.arange(3).__reduce__()
    with pytest.raises(ValueError, match="filled once"):
        array.__setstate__(state)
    assert type(pickle.loads(pickle.dumps(array))) is np.ndarray


def test_settings_that_grow_in_memory_are_refused(tmp_path):
    nested = [1]
    for _ in range(60):
        nested = [nested, nested]
    state = {"model": {}, "optimizer_history": [{"num_updates": 1}]}
    for name in ("x", "encoder_layers"):
        torch.save({**state, "args": argparse.Namespace(**{name: nested})}, tmp_path / "made.pt")
        with pytest.raises(CheckpointError, match="more than 100,000 settings"):
            checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "made.pt"))
    assert not is_literal("${" + 10**7 * "a")


def test_a_sparse_tensor_whose_indices_point_elsewhere_is_refused(tmp_path):
    indices, values = torch.tensor([[1 << 40]]), torch.ones(1)
    for sparse in (
        torch.sparse_coo_tensor(indices, values, (8,), check_invariants=False, is_coalesced=True),
        torch.eye(3).to_sparse_csr(),
    ):
        state = {"args": argparse.Namespace(), "optimizer_history": [], "model": {"weight": torch.zeros(8)}}
        for place in ("model", "last_optimizer_state"):
            torch.save({**state, place: {"weight": sparse}}, tmp_path / "made.pt")
            with pytest.raises(CheckpointError, match=r"sparse|is refused|is damaged"):
                load(tmp_path / "made.pt")


def test_the_engine_itself_refuses_to_load_it(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "made.pt"
    optimizer = {"num_updates": 1, "lr_scheduler_state": {}, "optimizer_name": "Adam"}
    model = argparse.Namespace(adaptive_softmax_cutoff=f"open({str(marker)!r}, 'w')")
    state = {"model": {}, "optimizer_history": [optimizer], "extra_state": {"train_iterator": {}}}
    torch.save({**state, "cfg": {"model": model}}, path)
    with pytest.raises(CheckpointError, match="adaptive_softmax_cutoff"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    # What a user's own command line puts in its place is what counts.
    checkpoint_utils.load_checkpoint_to_cpu(str(path), {"adaptive_softmax_cutoff": "[4, 8]"})
    assert not marker.exists()


def test_literals_are_allowed():
    made = random.Random(2)

    def literal(depth):
        kinds = [lambda: made.randint(-9, 9), lambda: made.random(), lambda: made.choice([None, True, "text"])]
        if depth:
            kinds += [lambda: [literal(depth - 1) for _ in range(made.randrange(3))]]
            kinds += [lambda: tuple(literal(depth - 1) for _ in range(made.randrange(3)))]
            kinds += [lambda: {made.randint(0, 3): literal(depth - 1)}]
        return made.choice(kinds)()

    for _ in range(EXAMPLES):
        value = literal(3)
        assert is_literal(repr(value)), value
    assert is_literal("[(512, 10, 5)] + [(512, 3, 2)] * 4")
    assert is_literal("${model.modalities.conv_feature_layers}") and not is_literal("${model.other}")
    assert not is_literal("(" * 5000) and not is_literal("-" * 9999 + "1") and not is_literal("1\0")


def test_a_foreign_object_is_refused_without_advice_to_switch_safety_off(tmp_path):
    path = tmp_path / "made.pt"
    for zipped in (True, False):
        torch.save({"model": Foreign(tmp_path / "marker")}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=r"is refused: it holds pathlib\.Path\.touch|is refused") as refusal:
            load(path)
        assert "weights_only" not in str(refusal.value) and "add_safe_globals" not in str(refusal.value)
    assert not (tmp_path / "marker").exists()


def test_a_checkpoint_of_older_pytorch_loads(tmp_path):
    state = {"cfg": {}, "model": {"weight": torch.ones(3)}, "optimizer_history": []}
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load(tmp_path / "old.pt")["model"]["weight"], torch.ones(3))


@pytest.mark.slow
def test_damaged_files_are_refused_in_one_sentence_or_load_as_they_were(tmp_path):
    path, made = tmp_path / "made.pt", random.Random(3)
    state = {"cfg": {"model": {"arch": "none"}}, "model": {"weight": torch.arange(300.0)}}
    torch.save({**state, "optimizer_history": [{"num_updates": 7}]}, path)
    intact, expected = path.read_bytes(), load(path)
    expected = {**expected, "model": {"weight": expected["model"]["weight"].clone()}}
    loaded = 0
    for _ in range(CASES):
        content = bytearray(intact)
        kind = made.choice(["flip", "flip", "flip", "cut", "zeros", "text", "insert", "head"])
        place = made.randrange(len(content))
        if kind == "flip":
            content[place] ^= 1 << made.randrange(8)
        elif kind == "cut":
            del content[place:]
        elif kind == "zeros":
            content[place : place + 50] = bytes(min(50, len(content) - place))
        elif kind == "text":
            content = bytearray(made.choice(["", "{", "no checkpoint\n" * place, "ä"]).encode())
        elif kind == "insert":
            content[place:place] = made.randbytes(3)
        else:
            del content[: place + 1]
        damaged = tmp_path / "damaged.pt"
        damaged.unlink(missing_ok=True)  # the file before may still be mapped
        damaged.write_bytes(content)
        try:
            state = load(damaged)
        except CheckpointError as error:
            assert str(error).startswith(str(damaged)) and "\n" not in str(error)
        else:
            loaded += 1
            assert same(state, expected), (kind, place)
    assert loaded < CASES / 4


@pytest.mark.slow
@pytest.mark.parametrize("name, reason", [("missing.pt", "no such file"), (".", "a folder, not a checkpoint")])
def test_what_is_no_file_is_said(tmp_path, name, reason):
    with pytest.raises(CheckpointError, match=reason):
        load(tmp_path / name)
