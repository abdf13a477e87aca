"""The types, besides tensors and plain containers, with which torch's safe loading reads fairseq's checkpoints."""

import argparse
import logging
import os
from typing import Any

import numpy as np
import torch

logger = logging.getLogger(__name__)

KINDS = frozenset(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"])
"""The types of numpy's numbers that a checkpoint may hold."""


class _Kind(str):
    """A dtype in a checkpoint, of which no more than its name is read."""

    def __new__(cls, name: str, *_: Any) -> "_Kind":
        if name not in KINDS:
            raise ValueError(f"numbers of the type {name!r:.20} are not allowed; allowed: {', '.join(sorted(KINDS))}")
        return super().__new__(cls, name)

    def __setstate__(self, state: Any) -> None:
        if state[1] != np.dtype(str(self)).str[0]:
            raise ValueError(f"numbers with the byte order {state[1]!r:.20} are not allowed")


class _Saved(np.ndarray):
    """An array from a checkpoint: it is filled once, with numbers."""

    is_filled = True

    def __new__(cls, *_: Any) -> "_Saved":
        raise TypeError("an array is not made from a shape")

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, is_fortran, data = state
        if self.is_filled or not isinstance(kind, _Kind) or not isinstance(data, bytes):
            raise ValueError("an array is filled once, with numbers")
        self.is_filled = True
        # The array shares the memory of the bytes, which a tensor may then change: they are its own.
        state = (1, shape, np.dtype(str(kind)), bool(is_fortran), bytes(bytearray(data)))
        super().__setstate__(state)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.view(np.ndarray).__reduce_ex__(protocol)


def _reconstruct(*_: Any) -> _Saved:
    array = np.ndarray.__new__(_Saved, (0,), "u1")
    array.is_filled = False
    return array


def _scalar(kind: _Kind, data: bytes) -> Any:
    if not isinstance(kind, _Kind) or not isinstance(data, bytes):
        raise ValueError("a number is made of its type and its bytes")
    (number,) = np.frombuffer(data, str(kind))
    return number


def allow() -> None:
    """Allows torch's safe loading (`weights_only=True`) the additional types in fairseq's checkpoints, and no others.

    These are argparse.Namespace (the settings of translation models) and numpy's numbers and arrays of numbers (the
    validation scores of --eval-bleu). Of numpy nothing can be called: with its own constructors a file reaches memory.
    """
    if os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None):
        logger.warning("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is ignored: files that torch.load reads could run code")
    allowed: list[Any] = [argparse.Namespace, (_Kind, "numpy.dtype"), (_Saved, "numpy.ndarray")]
    # Numpy 1 and 2 have them at different places, and a checkpoint may have been written beside either.
    for place in ("numpy.core.multiarray", "numpy._core.multiarray"):
        allowed += [(_reconstruct, f"{place}._reconstruct"), (_scalar, f"{place}.scalar")]
    torch.serialization.add_safe_globals(allowed)
