"""Trained models in Python: translation, completion, scores, and a sentence's signed attention weights."""

import argparse
import math
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils, utils
from fairseq.data import encoders
from fairseq.data.data_utils import collate_tokens
from fairseq.hub_utils import GeneratorHubInterface
from fairseq.tasks.language_modeling import LanguageModelingTask
from fairseq.tasks.translation import TranslationTask
from torch import Tensor

import fairseq_gpam  # noqa: F401  (registers the models and lets checkpoints be read)
from fairseq_gpam.attention.core.base import SiteName
from fairseq_gpam.errors import blamed_on
from fairseq_gpam.hub_arguments import check_generation, check_texts, languages
from fairseq_gpam.modules import register_attention_hook
from fairseq_gpam.modules.stacks import is_translation
from fairseq_gpam.plugins import import_file

MORE = {"source_lang", "target_lang", "gpam_import"}
"""The further arguments of `from_pretrained`."""


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
    """The common base of both kinds of models: conversion between text and tokens, batches, and the loaded models.

    Threads may share it: its functions run one at a time.
    """

    def __init__(self, cfg: Any, task: Any, models: list[Any], lowercase: bool) -> None:
        super().__init__(cfg, task, models)
        self.lowercase = lowercase
        self.target_tokenizer = self.tokenizer
        # Hooks, and what some mechanisms hand from layer to layer, belong to a model and not to a call.
        self.lock = threading.RLock()
        self.eval()

    @property
    def model(self) -> Any:
        """Returns fairseq's model, the first of an ensemble, for `register_attention_hook` and other uses."""
        return self.models[0]

    def use_moses(self, dash_splits: bool) -> None:
        """Tokenises with `sacremoses` in the languages of the task, or English if it names none."""
        source, target = (getattr(self.task.cfg, f"{side}_lang", None) or "en" for side in ("source", "target"))
        settings = {"target_lang": target, "moses_no_dash_splits": not dash_splits}
        self.tokenizer = _encoder("tokenizer", "moses", source_lang=source, **settings)
        self.target_tokenizer = _encoder("tokenizer", "moses", source_lang=target, **settings)

    def tokenize(self, sentence: str) -> str:
        return self._tokenize(sentence, self.tokenizer)

    def generate(self, tokenized_sentences: Any, beam: int = 5, verbose: bool = False, **kwargs: Any) -> Any:
        """Returns the hypotheses of each encoded sentence; `kwargs` are settings of fairseq-generate.

        Raises ValueError for a setting that does not exist or has a wrong value, and for a sentence that is longer than
        the model allows.
        """
        check_generation(beam, kwargs)
        longest = self.max_positions if isinstance(self.max_positions, int) else self.max_positions[0]
        for sentence in tokenized_sentences if not kwargs.get("skip_invalid_size_inputs") else ():
            if torch.is_tensor(sentence) and sentence.dim():
                self._check_length(sentence, longest, self.src_dict.string(sentence))
        with self.lock:
            try:
                return super().generate(tokenized_sentences, beam, verbose, **kwargs)
            except AssertionError as error:
                raise ValueError(f"these settings are not allowed together: {error}") from error

    def _tokenize(self, sentence: str, tokenizer: Any) -> str:
        tokenized: str = sentence if tokenizer is None else tokenizer.encode(sentence)
        return tokenized.lower() if self.lowercase else tokenized

    def _search(self, sentences: str | Sequence[str], beam: int, verbose: bool, settings: dict[str, Any]) -> Any:
        if isinstance(sentences, str):
            return self._search([sentences], beam, verbose, settings)[0]
        check_texts(sentences)
        check_generation(beam, settings)
        with self.lock:
            return self.sample(sentences, beam, verbose, **settings) if len(sentences) else []

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

    def _check_batches(self) -> None:
        """Raises ValueError if the task makes its batches in another way than this module does."""
        plain = TranslationTask if isinstance(self, Translator) else LanguageModelingTask
        methods = ("load_dataset", "build_dataset_for_inference", "inference_step")
        same = all(getattr(type(self.task), method) is getattr(plain, method, None) for method in methods)
        if not same or (plain is LanguageModelingTask and len(self.src_dict) != len(self.tgt_dict)):
            raise ValueError(
                f"score and attention are not allowed with the task {type(self.task).__name__}, which adds to the "
                "tokens of a sentence (fairseq-generate --score-reference scores it); allowed: translation, "
                "language_modeling"
            )

    @torch.no_grad()
    def _scores(self, targets: Sequence[Tensor], inputs: dict[str, Tensor]) -> list[Score]:
        with self.lock:
            each = [model.get_normalized_probs(model(**inputs), log_probs=True).float() for model in self.models]
        # As in fairseq, the models of an ensemble vote with the mean of their probabilities.
        log_probabilities = torch.stack(each).logsumexp(0) - math.log(len(each)) if len(each) > 1 else each[0]
        return [
            Score(
                self._words(target, self.tgt_dict),
                row[: len(target)].gather(1, target.to(self.device).unsqueeze(1)).flatten().tolist(),
            )
            for target, row in zip(targets, log_probabilities, strict=True)
        ]

    @torch.no_grad()
    def _attention(self, source: list[str], target: Tensor, inputs: dict[str, Tensor]) -> Attention:
        if len(self.models) > 1:
            raise ValueError(
                f"attention is not allowed with an ensemble of {len(self.models)} models; allowed: one model"
            )
        weights: dict[tuple[SiteName, int], Tensor] = {}

        def keep(layer: int, site: SiteName, of_call: Tensor) -> None:
            weights[site, layer] = of_call[0].float().cpu()

        with self.lock:
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
        """Returns the translation of a sentence, or those of several in order.

        `kwargs` are settings of fairseq-generate; one that does not exist raises ValueError.
        """
        return self._search(sentences, beam, verbose, kwargs)

    def score(self, sources: Sequence[str], targets: Sequence[str], batch_size: int = 32) -> list[Score]:
        """Returns the log-probabilities of each target given its source.

        Raises ValueError if their numbers differ or one is longer than the model allows.
        """
        self._check_batches()
        check_texts(sources, targets, batch_size=batch_size)
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
        self._check_batches()
        check_texts([sentence], [] if translation is None else [translation])
        if translation is None:
            (hypotheses,) = self.generate([self.encode(sentence)])
            target = hypotheses[0]["tokens"].cpu()
        else:
            target = self._encode_target(translation)
        inputs = self._inputs([sentence], [target])
        return self._attention(self._words(inputs["src_tokens"][0], self.src_dict), target, inputs)

    def _inputs(self, sources: Sequence[str], targets: Sequence[Tensor]) -> dict[str, Tensor]:
        encoded = [self.encode(sentence) for sentence in sources]
        source_limit, target_limit = self.max_positions
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
        """Returns a prompt with its continuation, or several in order; `kwargs` are settings of fairseq-generate.

        `max_len_b` is the largest number of new tokens, for the longest prompt of a batch.
        """
        check_generation(beam, kwargs)
        if "max_len_a" not in kwargs:
            # fairseq counts the token before the prompt too.
            kwargs |= {"max_len_a": 1, "max_len_b": kwargs.get("max_len_b", self.cfg.generation.max_len_b) - 1}
        return self._search(prompts, beam, False, kwargs)

    def score(self, sentences: Sequence[str], batch_size: int = 32) -> list[Score]:
        """Returns the log-probabilities of each sentence; raises ValueError if one is longer than the model allows."""
        self._check_batches()
        check_texts(sentences, batch_size=batch_size)
        scores: list[Score] = []
        for start in range(0, len(sentences), batch_size):
            encoded = [self._encode(sentence) for sentence in sentences[start : start + batch_size]]
            scores += self._scores(encoded, {"src_tokens": self._shifted(encoded)})
        return scores

    def attention(self, sentence: str) -> Attention:
        """Returns the weights of every layer and head; raises ValueError if the model has none of fairseq_gpam's."""
        self._check_batches()
        check_texts([sentence])
        target = self._encode(sentence)
        return self._attention([], target, {"src_tokens": self._shifted([target])})

    def _encode(self, sentence: str) -> Tensor:
        target = self._encode_target(sentence)
        self._check_length(target, self.max_positions, sentence)
        return target


def from_pretrained(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str] | None = None,
    tokenizer: str | None = None,
    sentencepiece: str | os.PathLike[str] | None = None,
    subword_nmt: str | os.PathLike[str] | None = None,
    lowercase: bool = False,
    dash_splits: bool = True,
    **more: str,
) -> Any:
    """Loads a checkpoint, ours or fairseq's own, safely; returns a Translator or a LanguageModel.

    Several checkpoints, separated by colons, are an ensemble. `data` is the folder with the dictionaries (the first one
    of several, separated by colons), by default the one used in training. `source_lang` and `target_lang` name the
    languages if the dictionaries do not tell which is which; `gpam_import` names a trusted file of the model's
    mechanism. Text must be tokenised as the training text was: with `tokenizer="moses"` (by `sacremoses`, in the task's
    languages; `dash_splits` splits at hyphens), then `lowercase`, then `sentencepiece` (a model) or `subword_nmt` (a
    file of codes). Raises FileNotFoundError for a missing file, CheckpointError for a checkpoint that is damaged or
    could run code, and ValueError for other errors in the arguments.
    """
    if tokenizer not in (None, "moses"):
        raise ValueError(f"tokenizer={tokenizer!r} is not allowed; allowed: 'moses', None")
    if sentencepiece is not None and subword_nmt is not None:
        raise ValueError("sentencepiece and subword_nmt are not allowed together")
    if not more.keys() <= MORE:
        raise ValueError(f"{', '.join(more.keys() - MORE)} is not allowed; allowed: {', '.join(sorted(MORE))}")
    checkpoints = utils.split_paths(str(checkpoint))
    folders = [] if data is None else utils.split_paths(str(data))
    for path in (*checkpoints, *folders, sentencepiece, subword_nmt):
        if path is not None and not Path(path).exists():
            raise FileNotFoundError(f"{path} does not exist")
    for path in folders:
        if not Path(path).is_dir():
            raise ValueError(f"data={path}: a file, not a folder with dictionaries")
    overrides: dict[str, Any] = dict(more)
    if "gpam_import" in more:
        overrides["gpam_import"] = import_file(more["gpam_import"])
    with blamed_on(f"{checkpoint}"):
        if data is not None:
            overrides |= {"data": str(data), **languages(checkpoints[0], Path(folders[0]), more)}
        models, cfg, task = checkpoint_utils.load_model_ensemble_and_task(checkpoints, overrides)
        translates = is_translation(models[0])
        if not translates and getattr(task.args, "add_bos_token", False):
            raise ValueError("a language model of --add-bos-token is not allowed")
        hub = (Translator if translates else LanguageModel)(cfg, task, models, lowercase)
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
    with blamed_on(f"{name} {settings}"):
        return build(argparse.Namespace(**{kind: name}, **settings))
