"""The versions of fairseq that this package needs, and the checks on the installed one."""

import atexit
import importlib.metadata
import importlib.util
import logging
import platform
from types import SimpleNamespace
from typing import Any

logger = logging.getLogger(__name__)

PINS = {"ve-fairseq": "0.12.3", "fairseq-fixed": "0.12.3.1"}
"""Distribution and version of the engines, the preferred one first; setup.py reads this table."""

INSTALL = (
    f"pip install 've-fairseq=={PINS['ve-fairseq']}' (Python 3.11 or 3.12 on Linux x86_64) or "
    f"pip install 'fairseq-fixed=={PINS['fairseq-fixed']}' (elsewhere; it is compiled)"
)

STOCK = (
    "stock: fairseq's own, unmodified model, to which everything is compared; softmax: the same formula computed by "
    "this package, equal to stock up to rounding, which can be mixed with other mechanisms and measured like them"
)
"""What a user must know to choose between the two."""


class EngineError(ImportError):
    """No usable fairseq is installed."""


def skips_custom_attention(encoder_layer: type) -> bool:
    """Returns whether an encoder layer has fairseq 0.12.2's inference path, which bypasses its attention module."""
    return "_transformer_encoder_layer_fwd" in encoder_layer.forward.__code__.co_names  # type: ignore[attr-defined]


def check() -> None:
    """Raises EngineError, in one sentence that says what to install, unless a usable fairseq can be imported."""
    # Silences fairseq's startup message about a library that only speech tasks need.
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)
    # A speech task sets the root logger to the lowest level, at which matplotlib reports every font.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    try:
        from fairseq.modules.transformer_layer import TransformerEncoderLayerBase
    # An unusable fairseq fails in many ways: 0.12.2, for example, by a ValueError in its dataclasses on Python 3.11.
    except Exception as error:
        raise EngineError(f"fairseq_gpam needs a fairseq that can be imported ({error}): {INSTALL}.") from error
    if skips_custom_attention(TransformerEncoderLayerBase):
        raise EngineError(
            "This fairseq's encoder bypasses custom attention at inference (the fast path of fairseq 0.12.2), "
            f"so its scores would be those of softmax: pip uninstall fairseq, then {INSTALL}."
        )


def prepare() -> None:
    """Makes the installed fairseq work with this package; raises EngineError if none is usable."""
    check()
    from fairseq_gpam import checkpoint_types

    checkpoint_types.allow()
    allow_numpy_2()
    allow_broadcasts()
    leave_process_group_at_exit()


def allow_numpy_2() -> None:
    """Gives fairseq the two things that it uses and numpy 2 no longer has."""
    import numpy as np
    from fairseq.data import bucket_pad_length_dataset, data_utils

    if not hasattr(np, "compat"):
        np.compat = SimpleNamespace(long=int)  # type: ignore[attr-defined]

    def get_buckets(sizes: Any, num_buckets: int) -> Any:
        return np.unique(np.percentile(sizes, np.linspace(0, 100, num_buckets + 1), method="lower")[1:])

    for module in (data_utils, bucket_pad_length_dataset):
        module.get_buckets = get_buckets


def allow_broadcasts() -> None:
    """Lets the processes of a training send each other objects of any type, as fairseq does with a loaded checkpoint.

    fairseq reads them by `torch.load`, which refuses its types. No file is unpickled here: rank 0 has read it safely.
    """
    import torch.distributed
    from fairseq.distributed import utils

    def broadcast(obj: Any, src_rank: int, group: Any, dist_device: torch.device) -> Any:
        sent = [obj]
        torch.distributed.broadcast_object_list(sent, src=src_rank, group=group, device=dist_device)
        return sent[0]

    utils._broadcast_object_slow = broadcast


def installed() -> str:
    """Returns the name and version of the installed engine, or that its distribution is unknown."""
    for distribution in (*PINS, "fairseq"):
        if version := _version(distribution):
            return f"{distribution} {version}"
    return "unknown distribution of fairseq" if importlib.util.find_spec("fairseq") else "not installed"


def leave_process_group_at_exit() -> None:
    """Makes a process that trained with the gloo backend exit cleanly.

    fairseq never closes its process group, so gloo's threads may abort a process after training, at interpreter exit
    (pytorch/pytorch#190489). Other backends are left alone.
    """

    def leave() -> None:
        import torch.distributed

        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        if torch.distributed.get_backend() == "gloo":
            torch.distributed.destroy_process_group()

    atexit.register(leave)


def versions() -> dict[str, str]:
    """Returns the versions of the software that a result depends on."""
    others = ("torch", "numpy", "sacrebleu", "sentencepiece")
    found = {distribution: _version(distribution) or "not installed" for distribution in others}
    return {"python": platform.python_version(), "engine": installed(), **found}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
