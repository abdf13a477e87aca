"""The one loader of checkpoints: what is damaged, foreign, or would run code is refused, each in one sentence.

`guard_engine` puts it before the engine's own loading, so that it also holds for fairseq-train, fairseq-generate and
every other command that has read `--user-dir`.
"""

import argparse
import ast
import importlib
import io
import itertools
import os
import pickle
import re
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fairseq_gpam.errors import blamed_on, writing_to

EVALUATED = frozenset(
    """
    adafactor_eps adam_betas adamax_betas adaptive_input_cutoff adaptive_softmax_cutoff character_filters
    conv_aggregator_layers conv_feature_layers decoder_attention decoder_layers decoder_xformers_att_config
    downsample encoder_attention encoder_layers encoder_xformers_att_config feature_encoder_spec gated_attention
    lamb_betas left_pad_source left_pad_target override_encoder_layers pipeline_balance pipeline_decoder_balance
    pipeline_decoder_devices pipeline_devices pipeline_encoder_balance pipeline_encoder_devices pretrained
    project_input self_attention wer_args xformers_att_config
    """.split()  # noqa: SIM905
)
"""The settings that the engine evaluates as Python when it builds a task, a model, a criterion or an optimiser."""

EVALUATING = """
    criterions.ctc data.audio.raw_audio_dataset data.codedataset models.fconv models.fconv_lm models.fconv_self_att
    models.hubert.hubert models.lightconv_lm models.multires_hubert.multires_hubert
    models.speech_to_text.s2t_wav_transformer models.transformer_lm models.wav2vec.wav2vec models.wav2vec.wav2vec2
    optim.adafactor optim.adam optim.adamax optim.cpu_adam optim.fused_lamb utils
    """.split()  # noqa: SIM905
"""The engine's modules that evaluate text as Python."""
PLAIN = (type(None), int, float, complex, str, bytes, set, Enum, np.generic)
"""The types of settings that hold no others."""
MOST = 100_000
"""The largest number of settings; a list that holds another twice, and so on, is small in a file and not in memory."""
LONGEST = 100_000
"""The longest text, in characters, that is read as a literal."""
LITERALS = "allowed: a literal, such as 512 or [512, 1024]"
REFERENCE = re.compile(r"\$\{([\w.]+)\}")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used; the message says which and why."""


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns a checkpoint's content after verifying the checksum of each part of the file (the zip's CRCs).

    Files of PyTorch before 1.6 are no zip and have no checksums. Raises CheckpointError if the file is missing,
    damaged, no checkpoint of fairseq, or holds what torch's safe loading refuses.
    """
    file = Path(path)
    if not file.is_file():
        raise CheckpointError(f"{file}: {'this is a folder, not a checkpoint' if file.is_dir() else 'no such file'}")
    try:
        with file.open("rb") as opened:
            start = opened.read(2)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}") from error
    if not start:
        raise CheckpointError(f"{file} is empty")
    try:
        if start == b"PK":
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise CheckpointError(f"{file} is damaged: the checksum of {damaged} is wrong")
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=start == b"PK")
    except (CheckpointError, MemoryError):
        raise
    # A damaged file can make zipfile and torch raise anything.
    except Exception as error:
        raise CheckpointError(f"{file} {_reason(error, start == b'PK')}") from error
    # Attributes of a dictionary could hide its methods.
    if not (isinstance(state, dict) and not getattr(state, "__dict__", None) and _is_of_model(state)):
        raise CheckpointError(
            f"{file} is not a checkpoint of fairseq: it lacks the parameters, the settings or the history of a training"
        )
    if not _is_dense(state):
        raise CheckpointError(
            f"{file} is refused: it holds a tensor that is sparse, nested or quantised; allowed: others"
        )
    return state


def _is_dense(state: Mapping[str, Any]) -> bool:
    """Returns whether every tensor is a plain one: what uses a sparse one trusts indices that can point anywhere."""
    left: list[Any] = [state]
    seen = set()
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if torch.is_tensor(one) and (one.layout is not torch.strided or one.is_nested or one.is_quantized):
            return False
        if isinstance(one, dict):
            left += [*dict.keys(one), *dict.values(one)]
        elif isinstance(one, (list, tuple, set)):
            left += one
        left += getattr(one, "__dict__", {}).values()
    return True


def _is_of_model(state: Mapping[str, Any]) -> bool:
    model, history = state.get("model"), state.get("optimizer_history")
    if not (isinstance(model, dict) and all(map(torch.is_tensor, dict.values(model)))):
        return False
    upgradable = "best_loss" in state or (isinstance(history, list) and all(isinstance(one, dict) for one in history))
    return upgradable and any(state.get(name) is not None for name in ("args", "cfg"))


def _reason(error: Exception, is_zip: bool) -> str:
    # torch's own messages advise to switch its safe loading off.
    refused = re.search(r"GLOBAL ([\w.]+) (?:was not|whose)", str(error))
    if refused:
        return f"is refused: it holds {refused[1]}, which could run code; a checkpoint holds tensors, numbers and text"
    if isinstance(error, pickle.UnpicklingError) and is_zip:
        return "is refused by torch's safe loading: it is damaged or holds what could run code"
    if is_zip:
        return f"is damaged or incomplete: {(str(error) or type(error).__name__).splitlines()[0]}"
    return "is not a checkpoint: torch.save did not write it, or it is damaged"


def save(state: Mapping[str, Any], path: Path) -> None:
    """Writes a checkpoint so that `path` always has either its old or its complete new content."""
    # Serialised in memory first, because torch's own error on a full disk does not name the cause.
    content = io.BytesIO()
    torch.save(state, content)
    content.seek(0)
    part = path.with_name(path.name + ".part")
    with writing_to(path):
        # Python 3.12.1 crashes where an error keeps the buffer that getbuffer() returns.
        with part.open("wb") as out:
            shutil.copyfileobj(content, out)
        part.replace(path)


def check_settings(path: str | os.PathLike[str], settings: Any) -> None:
    """Raises CheckpointError, with name and value, if the engine would run a setting as code.

    Also if settings are no plain data, which could show the engine other ones than they show here.
    """
    for name, value in _evaluated(path, settings, itertools.count()):
        if not is_literal(value):
            raise CheckpointError(
                f"{path} is refused: fairseq would run its setting {name} = {_shown(value)} as Python; {LITERALS}"
            )


def evaluate(text: Any) -> Any:
    """Is `eval` for the engine: returns the value of a literal; raises CheckpointError for other text.

    A setting can be hidden from any check of a file, for example in an interpolation; what is evaluated cannot.
    """
    if isinstance(text, str) and is_literal(text):
        return eval(text, {"__builtins__": {}})  # nosec B307
    if text is None or isinstance(text, (bool, int, float)):
        raise TypeError(f"{text!r} is no text")
    raise CheckpointError(f"{_shown(text)} is refused: fairseq would run it as Python; {LITERALS}")


def _shown(value: Any) -> str:
    return " ".join(repr(value).split())[:200]


def _evaluated(path: str | os.PathLike[str], settings: Any, count: Iterator[int]) -> Iterator[tuple[str, Any]]:
    """Yields each setting that the engine evaluates, with its name, however deep it lies; `count` counts all.

    Raises CheckpointError for what is no plain data.
    """
    from omegaconf import OmegaConf

    if next(count) > MOST:
        raise CheckpointError(f"{path} is refused: it has more than {MOST:,} settings")
    if OmegaConf.is_config(settings):
        settings = OmegaConf.to_container(settings, resolve=False)
    if isinstance(settings, (argparse.Namespace, dict)):
        for name, value in _pairs(path, settings):
            if name in EVALUATED:
                yield name, value
            yield from _evaluated(path, value, count)
    elif isinstance(settings, (list, tuple)):
        for value in settings:
            yield from _evaluated(path, value, count)
    elif not isinstance(settings, PLAIN):
        raise CheckpointError(
            f"{path} is refused: its settings hold {_shown(settings)}; allowed: numbers, text, lists, dictionaries"
        )


def _pairs(path: str | os.PathLike[str], settings: Any) -> Iterator[tuple[Any, Any]]:
    """Yields names and values, as entries and as attributes; raises CheckpointError for a name that is none.

    One that hides a method, such as an attribute `items`, or with a line break, at which the engine cuts names.
    """
    attributes = getattr(settings, "__dict__", {})
    entries = dict.items(settings) if isinstance(settings, dict) else ()
    for name, value in (*attributes.items(), *entries):
        hides = name in attributes and hasattr(type(settings), name)
        if hides or (isinstance(name, str) and not name.isprintable()):
            raise CheckpointError(
                f"{path} is refused: {name!r} is not allowed as the name of a setting, because it could hide another"
            )
        yield name, value


def is_literal(value: Any) -> bool:
    """Returns whether evaluating a setting gives a value and does nothing else.

    Text must be Python literals, which + and * may join, or refer to a setting that is checked itself.
    """
    if isinstance(value, str):
        if len(value) > LONGEST:
            return False
        if reference := REFERENCE.fullmatch(value):
            return reference[1].rpartition(".")[2] in EVALUATED
        try:
            # Nothing runs in an empty text, which is the default of some settings.
            return not value or _is_value(ast.parse(value.strip(), mode="eval").body)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    if isinstance(value, (list, tuple)):
        return all(map(is_literal, value))
    if isinstance(value, dict):
        return all(map(is_literal, dict.values(value)))
    return value is None or isinstance(value, (bool, int, float))


def _is_value(tree: ast.expr) -> bool:
    values = (ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.expr_context)
    operations = (ast.UnaryOp, ast.unaryop, ast.BinOp, ast.Add, ast.Mult)
    nodes = list(ast.walk(tree))
    unpacks = any(isinstance(node, ast.Dict) and None in node.keys for node in nodes)
    return not unpacks and all(isinstance(node, (*values, *operations)) for node in nodes)


def _note_settings(state: Any, own: Mapping[str, Any] | None = None) -> Any:
    """Notes our settings of a checkpoint on its weights, as `trained_with`: the model, which gets only these, compares.

    A stock model has none. `own` is the checkpoint before overrides.
    """
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        trained = state if own is None else own
        cfg = trained.get("cfg")
        settings = trained.get("args") if cfg is None else cfg.get("model")
        values = vars(settings) if isinstance(settings, argparse.Namespace) else dict(settings or {})
        weights: Any = state["model"]
        if type(weights) is dict:
            # An OrderedDict takes attributes.
            weights = state["model"] = OrderedDict(weights)
        weights.trained_with = {name: value for name, value in values.items() if str(name).startswith("gpam_")}
    return state


def guard_engine() -> None:
    """Makes the engine's own loading of a checkpoint verify the file and refuse settings that would run."""
    from fairseq import checkpoint_utils
    from fairseq.distributed import utils
    from fairseq.file_io import PathManager

    original = checkpoint_utils.load_checkpoint_to_cpu
    if original.__module__ == __name__:
        return

    def guarded(path: str, arg_overrides: Any = None, load_on_all_ranks: bool = False) -> dict[str, Any]:
        own = None if PathManager.path_requires_pathmanager(path) else load(path)
        if own is not None:
            # What is no plain data is refused before the engine converts it; an override may still replace the rest.
            for _ in _evaluated(path, [own.get("args"), own.get("cfg")], itertools.count()):
                pass
        # The engine's conversion of settings of a wrong form can raise anything.
        with blamed_on(f"{path}, its settings"):
            state: dict[str, Any] = original(path, arg_overrides, load_on_all_ranks)
            check_settings(path, [state.get("args"), state.get("cfg")])
            return _note_settings(state, own)

    for name in EVALUATING:
        importlib.import_module(f"fairseq.{name}").eval = evaluate  # type: ignore[attr-defined]
    broadcast = utils.broadcast_object
    checkpoint_utils.load_checkpoint_to_cpu = guarded
    # Dictionaries arrive without their attributes.
    utils.broadcast_object = lambda *args, **kwargs: _note_settings(broadcast(*args, **kwargs))
