"""Trained models in Python: translation, completion, scores, and a sentence's signed attention weights."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.data import encoders
from fairseq.data.data_utils import collate_tokens
from fairseq.hub_utils import GeneratorHubInterface
from torch import Tensor

import fairseq_gpam  # noqa: F401  (registers the models and lets checkpoints be read)
from fairseq_gpam.attention.core.base import SiteName
from fairseq_gpam.modules import register_attention_hook
from fairseq_gpam.modules.stacks import is_translation


@dataclass(frozen=True)
class Score:
    """The log-probability (natural logarithm) of each token of a sentence, end of sentence included."""

    tokens: list[str]
    log_probabilities: list[float]

    @property
    def total(self) -> float:
        return sum(self.log_probabilities)

    @property
    def perplexity(self) -> float:
        """Returns exp(−mean log-probability of a token)."""
        return float(torch.tensor(-self.total / len(self.tokens), dtype=torch.float64).exp())


@dataclass(frozen=True)
class Attention:
    """The signed weights of one sentence, before dropout, with the tokens that they belong to.

    `weights` has H × T × S for each (site, layer), layers counted from 0. `source` holds the encoder's tokens, none for
    a language model; `target` the decoder's inputs: the token at t attends while token t of `predicted` is predicted.
    """

    source: list[str]
    target: list[str]
    predicted: list[str]
    weights: dict[tuple[SiteName, int], Tensor]

    def queries(self, site: SiteName) -> list[str]:
        """Returns the tokens of the T rows."""
        return self.source if site == "encoder" else self.target

    def keys(self, site: SiteName) -> list[str]:
        """Returns the tokens of the S columns; with --cross-self-attention the source's come before the decoder's."""
        if site != "decoder":
            return self.source
        columns = next((maps.size(-1) for (name, _), maps in self.weights.items() if name == site), 0)
        return [*self.source, *self.target] if columns > len(self.target) else self.target


class _Hub(GeneratorHubInterface):
    """The common base of both kinds of models: conversion between text and tokens, batches, and the loaded model."""

    def __init__(self, cfg: Any, task: Any, model: Any, lowercase: bool) -> None:
        super().__init__(cfg, task, [model])
        self.lowercase = lowercase
        self.target_tokenizer = self.tokenizer
        self.eval()

    @property
    def model(self) -> Any:
        """Returns fairseq's model, for `register_attention_hook` and other uses."""
        return self.models[0]

    def use_moses(self, dash_splits: bool) -> None:
        """Tokenises with `sacremoses` in the languages of the task, or English if it names none."""
        source, target = (getattr(self.task.cfg, f"{side}_lang", None) or "en" for side in ("source", "target"))
        settings = {"target_lang": target, "moses_no_dash_splits": not dash_splits}
        self.tokenizer = _encoder("tokenizer", "moses", source_lang=source, **settings)
        self.target_tokenizer = _encoder("tokenizer", "moses", source_lang=target, **settings)

    def tokenize(self, sentence: str) -> str:
        return self._tokenize(sentence, self.tokenizer)

    def _tokenize(self, sentence: str, tokenizer: Any) -> str:
        tokenized: str = sentence if tokenizer is None else tokenizer.encode(sentence)
        return tokenized.lower() if self.lowercase else tokenized

    def _encode_target(self, sentence: str) -> Tensor:
        tokens = self.apply_bpe(self._tokenize(sentence, self.target_tokenizer))
        return self.tgt_dict.encode_line(tokens, add_if_not_exist=False).long()

    def _shifted(self, targets: Sequence[Tensor]) -> Tensor:
        eos, pad = self.tgt_dict.eos(), self.tgt_dict.pad()
        return collate_tokens(list(targets), pad, eos, move_eos_to_beginning=True).to(self.device)

    def _words(self, tokens: Tensor, dictionary: Any) -> list[str]:
        return [dictionary[int(token)] for token in tokens]

    def _check_length(self, tokens: Tensor, limit: int, sentence: str) -> None:
        if len(tokens) > limit:
            raise ValueError(f"{sentence[:60]!r} has {len(tokens)} tokens; allowed by the model: {limit}")

    @torch.no_grad()
    def _scores(self, targets: Sequence[Tensor], inputs: dict[str, Tensor]) -> list[Score]:
        found = self.model.get_normalized_probs(self.model(**inputs), log_probs=True)
        return [
            Score(
                self._words(target, self.tgt_dict),
                row[: len(target)].gather(1, target.to(self.device).unsqueeze(1)).flatten().tolist(),
            )
            for target, row in zip(targets, found.float(), strict=True)
        ]

    @torch.no_grad()
    def _attention(self, source: list[str], target: Tensor, inputs: dict[str, Tensor]) -> Attention:
        weights: dict[tuple[SiteName, int], Tensor] = {}

        def keep(layer: int, site: SiteName, found: Tensor) -> None:
            weights[site, layer] = found[0].float().cpu()

        handle = register_attention_hook(self.model, keep)
        try:
            self.model(**inputs)
        finally:
            handle.remove()
        predicted = self._words(target, self.tgt_dict)
        return Attention(source, [predicted[-1], *predicted[:-1]], predicted, weights)


class Translator(_Hub):
    """A translation model; `translate(sentences, beam=5)` is fairseq's own beam search."""

    def translate(
        self, sentences: str | Sequence[str], beam: int = 5, verbose: bool = False, **kwargs: Any
    ) -> str | list[str]:
        """Returns the translation of a sentence, or of several in order; `kwargs` are settings of fairseq-generate."""
        return self.sample(sentences, beam, verbose, **kwargs) if len(sentences) else []

    def score(self, sources: Sequence[str], targets: Sequence[str], batch_size: int = 32) -> list[Score]:
        """Returns the log-probabilities of each target given its source.

        Raises ValueError if their numbers differ or one is longer than the model allows.
        """
        if len(sources) != len(targets):
            raise ValueError(f"{len(sources)} sources and {len(targets)} targets are not allowed: give one for each")
        scores: list[Score] = []
        for start in range(0, len(sources), batch_size):
            pairs = slice(start, start + batch_size)
            encoded = [self._encode_target(sentence) for sentence in targets[pairs]]
            scores += self._scores(encoded, self._inputs(sources[pairs], encoded))
        return scores

    def attention(self, sentence: str, translation: str | None = None) -> Attention:
        """Returns the weights of every site, layer and head for a sentence and its translation, by default the model's.

        Raises ValueError if the model has no attention of fairseq_gpam.
        """
        if translation is None:
            (hypotheses,) = self.generate([self.encode(sentence)])
            target = hypotheses[0]["tokens"].cpu()
        else:
            target = self._encode_target(translation)
        inputs = self._inputs([sentence], [target])
        return self._attention(self._words(inputs["src_tokens"][0], self.src_dict), target, inputs)

    def _inputs(self, sources: Sequence[str], targets: Sequence[Tensor]) -> dict[str, Tensor]:
        encoded = [self.encode(sentence) for sentence in sources]
        source_limit, target_limit = self.model.max_positions()
        for sentence, source, target in zip(sources, encoded, targets, strict=True):
            self._check_length(source, source_limit, sentence)
            self._check_length(target, target_limit, self.tgt_dict.string(target))
        left = bool(getattr(self.task.cfg, "left_pad_source", True))
        return {
            "src_tokens": collate_tokens(encoded, self.src_dict.pad(), left_pad=left).to(self.device),
            "src_lengths": torch.tensor([len(source) for source in encoded], device=self.device),
            "prev_output_tokens": self._shifted(targets),
        }


class LanguageModel(_Hub):
    """A language model; sentences are independent, as with `--sample-break-mode eos`."""

    def complete(self, prompts: str | Sequence[str], beam: int = 5, **kwargs: Any) -> str | list[str]:
        """Returns a prompt's continuation, or those of several in order; `kwargs` are settings of fairseq-generate."""
        return self.sample(prompts, beam, **kwargs) if len(prompts) else []

    def score(self, sentences: Sequence[str], batch_size: int = 32) -> list[Score]:
        """Returns the log-probabilities of each sentence; raises ValueError if one is longer than the model allows."""
        scores: list[Score] = []
        for start in range(0, len(sentences), batch_size):
            encoded = [self._encode(sentence) for sentence in sentences[start : start + batch_size]]
            scores += self._scores(encoded, {"src_tokens": self._shifted(encoded)})
        return scores

    def attention(self, sentence: str) -> Attention:
        """Returns the weights of every layer and head; raises ValueError if the model has none of fairseq_gpam's."""
        target = self._encode(sentence)
        return self._attention([], target, {"src_tokens": self._shifted([target])})

    def _encode(self, sentence: str) -> Tensor:
        target = self._encode_target(sentence)
        self._check_length(target, self.model.max_positions(), sentence)
        return target


def from_pretrained(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    tokenizer: str | None = None,
    sentencepiece: str | os.PathLike[str] | None = None,
    subword_nmt: str | os.PathLike[str] | None = None,
    lowercase: bool = False,
    dash_splits: bool = True,
) -> Any:
    """Loads a checkpoint, ours or fairseq's own, safely; returns a Translator or a LanguageModel.

    `data` is the folder with the dictionaries, by default the one used in training. Text must be tokenised as the
    training text was: with `tokenizer="moses"` (by `sacremoses`, in the task's languages; `dash_splits` splits at
    hyphens), then `lowercase`, then `sentencepiece` (a model) or `subword_nmt` (a file of codes). Raises
    FileNotFoundError for a missing file and ValueError for other errors in the arguments.
    """
    if tokenizer not in (None, "moses"):
        raise ValueError(f"tokenizer={tokenizer!r} is not allowed; allowed: 'moses', None")
    if sentencepiece is not None and subword_nmt is not None:
        raise ValueError("sentencepiece and subword_nmt are not allowed together")
    for path in (checkpoint, data, sentencepiece, subword_nmt):
        if path is not None and not Path(path).exists():
            raise FileNotFoundError(f"{path} does not exist")
    overrides = {} if data is None else {"data": str(data)}
    models, cfg, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], overrides)
    translates = is_translation(models[0])
    if not translates and getattr(task.args, "add_bos_token", False):
        raise ValueError("a language model of --add-bos-token is not allowed")
    hub = (Translator if translates else LanguageModel)(cfg, task, models[0], lowercase)
    if tokenizer is not None:
        hub.use_moses(dash_splits)
    if sentencepiece is not None:
        hub.bpe = _encoder("bpe", "sentencepiece", sentencepiece_model=str(sentencepiece))
    if subword_nmt is not None:
        hub.bpe = _encoder("bpe", "subword_nmt", bpe_codes=str(subword_nmt))
    return hub


def _encoder(kind: str, name: str, **settings: Any) -> Any:
    """Builds one of fairseq's tokenisers or subword encoders; its other settings keep fairseq's defaults."""
    build = {"tokenizer": encoders.build_tokenizer, "bpe": encoders.build_bpe}[kind]
    return build(argparse.Namespace(**{kind: name}, **settings))
