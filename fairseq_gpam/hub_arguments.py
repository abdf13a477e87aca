"""Checks what the functions of the hub are given, and finds the languages of a folder of dictionaries."""

import itertools
from pathlib import Path
from typing import Any

from fairseq.data.data_utils import infer_language_pair
from fairseq.dataclass.configs import GenerationConfig
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fairseq_gpam.checkpoints import load

SETTINGS = frozenset(
    """
    diverse_beam_groups diverse_beam_strength diversity_rate lenpen match_source_len max_len_a max_len_b min_len
    no_repeat_ngram_size print_alignment sampling sampling_topk sampling_topp temperature unkpen unnormalized
    """.split()  # noqa: SIM905
)
"""The settings of fairseq-generate that fairseq's generator reads; the others belong to the command."""
SEARCH = {"skip_invalid_size_inputs", "inference_step_args", "prefix_allowed_tokens_fn"}
"""The arguments of fairseq's `generate` that are not settings of fairseq-generate."""


def languages(checkpoint: str, folder: Path, given: dict[str, str]) -> dict[str, str]:
    """Returns the languages of a translation's dictionaries if nothing else tells which is the source.

    fairseq takes them from the names of binarised text, which need not be there. Two dictionaries of different sizes
    are told apart by the model's embeddings. Raises ValueError if both orders fit.
    """
    state = load(checkpoint)
    settings = state["cfg"]["task"] if state.get("cfg") else state["args"]
    known = [given.get(name) or _setting(settings, name) for name in ("source_lang", "target_lang")]
    sizes = [state["model"].get(f"{stack}.embed_tokens.weight") for stack in ("encoder", "decoder")]
    if all(known) or None in sizes or all(infer_language_pair(str(folder))):
        return {}
    files = sorted(folder.glob("dict.*.txt"))
    if len(files) == 1:
        return {name: files[0].name.split(".")[1] for name in ("source_lang", "target_lang")}
    specials = 4
    entries = {file: specials + len(file.read_bytes().splitlines()) for file in files}
    orders = [
        order
        for order in itertools.permutations(files, 2)
        if all(entries[file] == len(rows) for file, rows in zip(order, sizes, strict=True))
    ]
    if len(orders) == 1 or (len(files) == 2 and orders and files[0].read_bytes() == files[1].read_bytes()):
        source, target = (file.name.split(".")[1] for file in orders[0])
        return {"source_lang": source, "target_lang": target}
    names = ", ".join(file.name for file in files) or "no dict.*.txt"
    raise ValueError(f"data={str(folder)!r} does not tell the languages ({names}); give source_lang and target_lang")


def _setting(settings: Any, name: str) -> Any:
    return settings.get(name) if isinstance(settings, dict) else getattr(settings, name, None)


def check_texts(*lists: Any, batch_size: int = 1) -> None:
    """Raises ValueError if one of the lists is a single text or holds something else than texts."""
    for texts in lists:
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{texts!r:.60} is not allowed; allowed: a list of texts")
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not allowed; allowed: a whole number above 0")


def check_generation(beam: Any, settings: dict[str, Any]) -> None:
    """Raises ValueError for a setting that fairseq's generator does not read, or a value of the wrong kind."""
    if not isinstance(beam, int) or isinstance(beam, bool) or beam < 1:
        raise ValueError(f"beam={beam!r} is not allowed; allowed: a whole number above 0")
    known = OmegaConf.structured(GenerationConfig)
    for name, value in settings.items():
        if name in SEARCH:
            continue
        if name not in SETTINGS:
            raise ValueError(f"{name}={value!r} is not allowed; allowed: {', '.join(sorted(SETTINGS))}")
        try:
            known[name] = value
        except OmegaConfBaseException as error:
            raise ValueError(f"{name}={value!r} is not allowed: {str(error).splitlines()[0]}") from error
