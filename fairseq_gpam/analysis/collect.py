"""Runs samples through a model under the probe and keeps the metrics, and the attention maps of a few samples."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fairseq_gpam.analysis import induction, metrics
from fairseq_gpam.analysis.attribution import deletion_test, operator_maps, relevance_map
from fairseq_gpam.analysis.definitions import WEIGHTS
from fairseq_gpam.analysis.loading import LoadedModel, Samples, token_labels
from fairseq_gpam.analysis.operator import OperatorError
from fairseq_gpam.analysis.probe import Probe
from fairseq_gpam.analysis.short_paths import mean_path_losses
from fairseq_gpam.attention.core.measures import first_head, lambdas
from fairseq_gpam.modules.listener import AttentionCall, AttentionPlace, HiddenStates, distinct_heads, find_attentions

Key = tuple[str, str, int, int | None]
Place = AttentionPlace | AttentionCall | HiddenStates


@dataclass
class SampleMaps:
    """The attention maps of one sample, H × T × S by (site, layer), and their token labels.

    `visible` says which weights are not masked, in the same shapes.
    `relevance` is one map T × S for all layers, or None if it was not computed; `operators` holds the maps of
    `operator_maps` by name.
    """

    number: int
    source: list[str]
    target: list[str]
    predicted: list[str]
    maps: dict[tuple[str, int], Tensor]
    visible: dict[tuple[str, int], Tensor]
    relevance: Tensor | None = None
    operators: dict[str, Tensor] = field(default_factory=dict)

    def axes(self, site: str) -> tuple[list[str], list[str]]:
        """Returns the labels of the queries and of the keys."""
        queries = self.source if site == "encoder" else self.target
        return queries, self.target if site == "decoder" else self.source

    def token_maps(self) -> Iterator[tuple[str, Tensor, list[str], list[str]]]:
        """Yields the maps that cover all layers: name, values, and the labels of output and input tokens."""
        if self.relevance is not None:
            yield "relevance", self.relevance, self.predicted, self.source
        for name, values in self.operators.items():
            outputs = self.source if name == "encoder operator" else self.predicted
            yield name, values, outputs, self.target if name == "decoder operator" else self.source


@dataclass
class Measurement:
    """The measurements of one model with one setting of the probe's switches."""

    loaded: LoadedModel
    without: tuple[str, ...]
    loss: float = float("nan")
    sample_size: float = 0.0
    num_samples: int = 0
    values: dict[Key, list[float]] = field(default_factory=lambda: defaultdict(list))
    sample_maps: list[SampleMaps] = field(default_factory=list)
    floor: float = 0.0
    """The residual ratio that rounding alone leaves."""
    paths: list[dict[str, Any]] = field(default_factory=list)
    deletions: list[dict[str, Any]] = field(default_factory=list)
    path_losses: list[dict[str, Any]] = field(default_factory=list)
    refusals: dict[str, str] = field(default_factory=dict)
    """Why `operator` or `path-loss` could not be measured of this model."""

    @property
    def variant(self) -> str:
        return "without " + ", ".join(self.without) if self.without else "full"

    @property
    def model_and_setting(self) -> dict[str, Any]:
        return {"checkpoint": self.loaded.name, "variant": self.variant}

    def add(self, metric: str, place: Place, values: Tensor, head: int | None = None) -> None:
        self.values[metric, place.site, place.layer, head].extend(values.detach().double().flatten().tolist())

    def add_heads(
        self, metric: str, place: AttentionPlace, by_head: Tensor, first: int = 0, heads: Sequence[int] = ()
    ) -> None:
        """Adds the mean over the heads, and each head's values, one for each sample (B × H) or in all (H).

        They are those of `heads`, or of as many as there are from `first`, which count from 0.
        """
        self.add(metric, place, by_head.nanmean(dim=-1))
        for number, head in enumerate(heads or range(first, first + by_head.size(-1))):
            self.add(metric, place, by_head[..., number], head + 1)

    def records(self) -> list[dict[str, Any]]:
        """Returns one row for each metric, site, layer and head: mean, deviation, 10 % and 90 % over the samples.

        Undefined values are left out; mean and deviation also leave out infinite ones (the spectral gap of a rank-one
        map). `count` is the number of defined values.
        """
        rows = []
        for (metric, site, layer, head), values in self.values.items():
            defined = [value for value in values if not np.isnan(value)]
            finite = [value for value in defined if np.isfinite(value)] or [np.nan]
            # Quantiles without interpolation, which would make more of them infinite.
            low, median, high = np.quantile(defined or [np.nan], (0.1, 0.5, 0.9), method="nearest").tolist()
            rows.append(
                {
                    **self.model_and_setting,
                    **{"metric": metric, "site": site, "layer": layer, "head": head},
                    "mean": float(np.mean(finite)),
                    "std": float(np.std(finite)),
                    "low": low,
                    "median": median,
                    "high": high,
                    "count": len(defined),
                }
            )
        return rows


def collect(
    loaded: LoadedModel,
    samples: Samples,
    without: Sequence[str] = (),
    batch_size: int = 4,
    with_maps: Sequence[int] = (),
    paths: int = 24,
    seed: int = 1,
    frozen: Collection[str] = (),
) -> Measurement:
    """Measures one model on `samples`, without dropout.

    `with_maps` lists the samples whose maps are kept. `frozen` names what is measured on the frozen model: `operator`
    for the samples in `with_maps`, `path-loss` for every sample.
    """
    measurement = Measurement(loaded, tuple(without))
    model = loaded.model
    if "skips" in without:
        # Without skips the residual ratio falls below float32's precision within three layers.
        model.double()
    measurement.floor = 10 * torch.finfo(next(model.parameters()).dtype).eps
    try:
        measure_parameters(measurement)
        measure_samples(measurement, samples.batches(batch_size))
        measure_copying(measurement)
        for number in with_maps:
            measurement.sample_maps.append(collect_maps(measurement, samples, number))
        # Relevance describes the model as it was trained; an adaptive softmax has no logits to explain.
        if loaded.is_translation and not without and getattr(model.decoder, "adaptive_softmax", None) is None:
            try:
                for sample in measurement.sample_maps:
                    sample.relevance = relevance_map(model, samples.batch([sample.number]))
            except OperatorError as error:
                measurement.refusals["relevance"] = str(error)
        for name in frozen if not without else ():
            try:
                if name == "operator":
                    measure_operator(measurement, samples)
                else:
                    measurement.path_losses = mean_path_losses(loaded, samples)
            except OperatorError as error:
                measurement.refusals[f"--{name}"] = str(error)
        if paths:
            measurement.paths = measure_paths(measurement, paths, seed)
    finally:
        model.float()
    return measurement


def measure_samples(measurement: Measurement, batches: Sequence[dict[str, Any]]) -> None:
    """Adds the metrics of states and weights, for each sample, and the gradients of the summed loss."""
    loaded = measurement.loaded
    places = find_attentions(loaded.model)
    weights = [(place, name, getattr(place.module, f"{name[0]}_proj").weight) for place in places for name in WEIGHTS]
    gradients = [torch.zeros_like(weight) for _, _, weight in weights]
    total_loss = 0.0
    for batch in batches:
        inputs = batch["net_input"]
        token_ids = {"encoder": inputs["src_tokens"], "decoder": inputs.get("prev_output_tokens", inputs["src_tokens"])}
        with Probe(
            loaded.model,
            measurement.without,
            on_attention=lambda call, ids=token_ids: measure_attention(measurement, call, ids.get(call.site)),  # type: ignore[misc]
            on_states=lambda states: measure_states(measurement, states),
        ):
            loss, sample_size, _ = loaded.criterion(loaded.model, batch)
        parts = torch.autograd.grad(loss, [weight for _, _, weight in weights], materialize_grads=True)
        for total, part in zip(gradients, parts, strict=True):
            total += part
        total_loss += float(loss.detach())
        measurement.sample_size += float(sample_size)
        measurement.num_samples += len(batch["id"])
    measurement.loss = total_loss / measurement.sample_size
    for (place, name, weight), gradient in zip(weights, gradients, strict=True):
        norm = gradient.double().norm() / measurement.sample_size
        measurement.add(f"{name}_gradient", place, norm)
        measurement.add(f"{name}_gradient_relative", place, norm / weight.detach().double().norm())


@torch.no_grad()
def measure_states(measurement: Measurement, event: HiddenStates) -> None:
    states, tokens = event.states.double(), event.tokens
    _measure_tokens(measurement, event, states, "")
    measurement.add("residual_ratio_argmin", event, metrics.residual_ratio_argmin(event.states, tokens))
    massive = metrics.massive_activations(states, tokens)
    for rank in range(massive.size(-1)):
        measurement.add(f"massive_activation_{rank + 1}", event, massive[..., rank])
    measurement.add("kurtosis", event, metrics.kurtosis(states, tokens))


def _measure_tokens(measurement: Measurement, event: AttentionCall | HiddenStates, states: Tensor, prefix: str) -> None:
    for function in (metrics.residual_norm, metrics.residual_ratio, metrics.mean_cosine):
        measurement.add(prefix + function.__name__, event, function(states, event.tokens))
    for name, value in zip(("stable_rank", "effective_rank"), metrics.ranks(states, event.tokens), strict=True):
        measurement.add(prefix + name, event, value)


@torch.no_grad()
def measure_attention(measurement: Measurement, event: AttentionCall, token_ids: Tensor | None) -> None:
    """Adds the metrics of one attention's weights; `token_ids` are those of a self-attention, B × T."""
    weights, visible = event.weights.detach().double(), event.visible
    by_head = {
        "spectral_gap": metrics.spectral_gap(weights, visible),
        "entropy": metrics.entropy(weights, visible),
        "entropy_normalised": metrics.entropy(weights, visible, normalised=True),
        "row_sum": metrics.row_sum(weights, visible),
        "negative_mass": metrics.negative_mass(weights, visible),
        "sink_rate": metrics.sink(weights, visible),
        "first_token_share": metrics.first_token_share(weights, visible),
    }
    probabilities = event.probabilities()
    if probabilities is not None:
        probabilities = probabilities.double()
        by_head["softmax_jacobian_l1"] = metrics.softmax_jacobian_l1(probabilities, visible)
        by_head["softmax_jacobian_frobenius"] = metrics.softmax_jacobian_frobenius(probabilities, visible)
    # With learned keys, or the source among the keys, the keys are not the queries' tokens.
    if token_ids is not None and weights.shape[-2:] == token_ids.shape[-1:] * 2:
        by_head["previous_token_score"] = induction.previous_token_score(weights, visible)
        by_head["induction_score"] = induction.induction_score(weights, token_ids, visible)
    for name, values in {**by_head, **event.token_lambdas}.items():
        measurement.add_heads(name, event.place, values, first_head(event.place.module, name))
    distinct = distinct_heads(event.place.module)
    redundancy = metrics.head_redundancy(weights[:, distinct], visible.expand(weights.shape)[:, distinct])
    measurement.add("head_redundancy", event, redundancy)
    _measure_tokens(measurement, event, event.output.double(), "attention_output_")


@torch.no_grad()
def measure_parameters(measurement: Measurement) -> None:
    """Adds the measurements that need no data: the QK eigenspectrum and the λ's that do not depend on the token."""
    for place in find_attentions(measurement.loaded.model):
        module = place.module
        queries, keys = module.q_proj.weight.detach().double(), module.k_proj.weight.detach().double()
        if queries.shape == keys.shape:
            mean, variance = metrics.qk_eigenspectrum(queries, keys, module.num_heads)
            measurement.add_heads("qk_eigenvalue_mean", place, mean)
            measurement.add_heads("qk_eigenvalue_variance", place, variance)
        for name, values in lambdas(module).items():
            if values.numel() > 1:
                measurement.add_heads(name, place, values, first_head(module, name))
            else:
                measurement.add(name, place, values)


def measure_copying(measurement: Measurement) -> None:
    """Adds the copying score of the decoder's heads if the model has a single matrix of output embeddings."""
    decoder = measurement.loaded.model.decoder
    output = getattr(decoder, "output_projection", None)
    if output is None or not (hasattr(output, "weight") and hasattr(decoder.embed_tokens, "weight")):
        return
    dictionary = measurement.loaded.task.target_dictionary
    # Symbols that never occur have logits far below all others, which would dominate the score of a small vocabulary.
    words = [
        index for index in range(dictionary.nspecial, len(dictionary)) if not dictionary[index].startswith("madeupword")
    ]
    embedding, unembedding = (
        weight.detach().double()[words] for weight in (decoder.embed_tokens.weight, output.weight)
    )
    # Embeddings whose width differs from the layers' are projected to that width and back.
    if decoder.project_in_dim is not None:
        embedding = embedding @ decoder.project_in_dim.weight.detach().double().T
    if decoder.project_out_dim is not None:
        unembedding = unembedding @ decoder.project_out_dim.weight.detach().double()
    for place in find_attentions(measurement.loaded.model):
        values, outputs = (getattr(place.module, name).weight.detach().double() for name in ("v_proj", "out_proj"))
        if place.site != "decoder" or values.size(1) != embedding.size(1) or outputs.size(0) != unembedding.size(1):
            continue
        heads = distinct_heads(place.module)
        if place.module.num_heads % len(heads):
            # In a mixture of single and paired heads the heads differ in width.
            continue
        scores = induction.copying_score(values, outputs, embedding, unembedding, len(heads))
        measurement.add_heads("copying_score", place, scores, heads=heads)


@torch.no_grad()
def measure_operator(measurement: Measurement, samples: Samples) -> None:
    """Adds the frozen model's maps to every drawn sample, and the deletion test of `operator` and the relevance."""
    for sample in measurement.sample_maps:
        batch = samples.batch([sample.number])
        sample.operators = operator_maps(measurement.loaded.model, batch)
        maps = {"operator": sample.operators["operator"]}
        if sample.relevance is not None:
            maps["relevance"] = sample.relevance
        place = {"checkpoint": measurement.loaded.name, "sample": sample.number}
        measurement.deletions += [{**place, **row} for row in deletion_test(measurement.loaded, batch, maps)]


def collect_maps(measurement: Measurement, samples: Samples, number: int) -> SampleMaps:
    """Runs one sample alone, without padding, and keeps its attention maps."""
    loaded = measurement.loaded
    batch = samples.batch([number])
    maps: dict[tuple[str, int], Tensor] = {}
    visible: dict[tuple[str, int], Tensor] = {}

    def keep(event: AttentionCall) -> None:
        maps[event.site, event.layer] = event.weights.detach()[0].float()
        visible[event.site, event.layer] = event.visible.expand(event.weights.shape)[0]

    with torch.no_grad(), Probe(loaded.model, measurement.without, on_attention=keep):
        loaded.model(**batch["net_input"])
    inputs, target_dictionary = batch["net_input"], loaded.task.target_dictionary
    predicted = token_labels(target_dictionary, batch["target"][0])
    source = target = token_labels(loaded.task.source_dictionary, inputs["src_tokens"][0])
    if loaded.is_translation:
        target = token_labels(target_dictionary, inputs["prev_output_tokens"][0])
    return SampleMaps(number, source, target, predicted, maps, visible)


def measure_paths(measurement: Measurement, count: int, seed: int) -> list[dict[str, Any]]:
    """Returns, for every length of path through a stack's self-attentions, the residuals of sampled paths."""
    rows = []
    for site in ("encoder", "decoder"):
        places = {place for sample in measurement.sample_maps for place in sample.maps}
        depth = sum(name == site for name, _ in places)
        for length in range(1, depth + 1):
            generator = torch.Generator().manual_seed(seed)
            residuals = []
            for sample in measurement.sample_maps:
                maps = [sample.maps[site, layer].double() for layer in range(depth)]
                residuals.append(metrics.path_residuals(maps, length, count, generator))
            values = torch.cat(residuals)
            low, median, high = torch.quantile(values, torch.tensor([0.1, 0.5, 0.9], dtype=values.dtype)).tolist()
            rows.append(
                {
                    **measurement.model_and_setting,
                    **{"site": site, "length": length},
                    # As a string, because JSON readers lose digits of large whole numbers.
                    "number_of_paths": str(metrics.number_of_paths(depth, length, maps[0].size(0))),
                    "sampled": values.numel(),
                    "mean": float(values.mean()),
                    "low": low,
                    "median": median,
                    "high": high,
                }
            )
    return rows


def slopes(measurement: Measurement) -> list[dict[str, Any]]:
    """Returns the fit of log(−log r) against depth for every stack, if measured without skips."""
    if "skips" not in measurement.without:
        return []
    rows = []
    for site in ("encoder", "decoder"):
        layers = sorted(key[2] for key in measurement.values if key[:2] == ("residual_ratio", site))
        if layers:
            values = (measurement.values["residual_ratio", site, layer, None] for layer in layers)
            ratios = [float(np.mean([value for value in each if np.isfinite(value)] or [np.nan])) for each in values]
            slope, intercept, points = metrics.log_log_slope(ratios, measurement.floor)
            row = {"site": site, "slope": slope, "intercept": intercept, "points": points}
            rows.append({**measurement.model_and_setting, **row, "floor": measurement.floor, "ratios": ratios})
    return rows
