"""Which tokens a prediction depends on: attention relevance, block norms of the frozen model, and a deletion test."""

from typing import Any

import torch
from torch import Tensor

from fairseq_gpam.analysis import metrics
from fairseq_gpam.analysis.loading import LoadedModel
from fairseq_gpam.analysis.operator import FrozenModel, OperatorError, deletion_losses, in_float64
from fairseq_gpam.analysis.probe import Probe
from fairseq_gpam.modules.listener import AttentionCall
from fairseq_gpam.modules.stacks import is_translation

REMOVED_SHARE = 0.2
"""The share of the tokens that the deletion test removes."""


def relevance_map(model: Any, batch: dict[str, Any], copies: int = 16) -> Tensor:
    """Returns the relevance of every source token for the logit of every target token: T × S.

    Chefer et al. 2021 (arXiv 2103.15679). The sentence is repeated, once for each target position, so that one
    backward pass gives the gradients of many logits. Raises OperatorError if the model has no cross-attention, or an
    attention does not use the map that it returns.
    """
    target = batch["target"][0]
    rows = []
    for start in range(0, len(target), copies):
        positions = torch.arange(start, min(start + copies, len(target)))
        inputs = {
            name: value.expand(len(positions), *value.shape[1:]) if torch.is_tensor(value) else value
            for name, value in batch["net_input"].items()
        }
        seen: dict[tuple[str, int], Tensor] = {}

        def keep(event: AttentionCall, seen: dict[tuple[str, int], Tensor] = seen) -> None:
            seen[event.site, event.layer] = event.weights

        with torch.enable_grad(), Probe(model, on_attention=keep):
            logits = model(**inputs)[0]
        chosen = logits[torch.arange(len(positions)), positions, target[positions]].sum()
        gradients = torch.autograd.grad(chosen, list(seen.values()), allow_unused=True)
        unused = [f"{site} layer {layer}" for (site, layer), grad in zip(seen, gradients, strict=True) if grad is None]
        if all(site != "cross" for site, _ in seen):
            raise OperatorError("the model has no cross-attention; allowed: a model that has it")
        if unused:
            why = f"the output of {', '.join(unused)} is not computed from the map that it returns"
            raise OperatorError(f"{why}; allowed: in every layer a mechanism that uses its map")
        maps = {
            key: metrics.attention_relevance(weights.detach(), gradient)
            for (key, weights), gradient in zip(seen.items(), gradients, strict=True)
        }
        stacks = ([maps[key] for key in sorted(maps) if key[0] == site] for site in ("encoder", "decoder", "cross"))
        relevance = metrics.translation_relevance(*stacks)
        rows.append(relevance[torch.arange(len(positions)), positions])
    return torch.cat(rows)


def operator_maps(model: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Returns the Frobenius norms of the frozen model's blocks, one for each output and input token, in float64.

    `operator` leads from the source tokens to the predictions, T × S; in a language model the source tokens are those
    of the sentence itself. In translation `encoder operator`, S × S, leads from the source tokens to the encoder's
    output, and `decoder operator`, T × T, from the target's earlier tokens to the predictions. Raises OperatorError as
    `FrozenModel` does.
    """
    with in_float64(model):
        frozen = FrozenModel(model, batch["net_input"])
        if not is_translation(model):
            return {"operator": frozen.block_norms("decoder", "decoder")}
        return {
            "operator": frozen.block_norms("decoder", "encoder"),
            "encoder operator": frozen.block_norms("encoder", "encoder"),
            "decoder operator": frozen.block_norms("decoder", "decoder"),
        }


def deletion_test(loaded: LoadedModel, batch: dict[str, Any], maps: dict[str, Tensor]) -> list[dict[str, Any]]:
    """Returns how much the loss grows, in nats per predicted token, without the tokens that a map ranks highest.

    A fifth of the tokens is removed. In translation, source tokens other than the end of sentence are ranked by the
    column sums of a map, and the loss is that of the reference. In a language model, the tokens before the last are
    ranked by the map's last row, and the loss is that of the last predicted token. `random` is the mean over random
    choices.
    """
    inputs, target = batch["net_input"], batch["target"]
    tokens = inputs["src_tokens"][0]
    if loaded.is_translation:
        removable = tokens != loaded.task.source_dictionary.eos()
        scores = {name: values.sum(dim=0) for name, values in maps.items()}
    else:
        removable = torch.arange(len(tokens)) < len(tokens) - 1
        scores = {name: values[-1] for name, values in maps.items()}
        target = target[:, -1:]

    def loss(kept: Tensor) -> float:
        stays = ~removable
        stays[removable] = kept
        shorter = tokens[stays][None]
        output = loaded.model(**{**inputs, "src_tokens": shorter, "src_lengths": torch.tensor([shorter.size(1)])})
        logarithms = loaded.model.get_normalized_probs(output, log_probs=True)[:, -target.size(1) :]
        return -float(logarithms.gather(-1, target[..., None]).mean())

    candidates = int(removable.sum())
    if candidates == 0:
        return []
    count = max(1, round(REMOVED_SHARE * candidates))
    increases = deletion_losses(loss, {name: values[removable] for name, values in scores.items()}, count)
    return [{"map": name, "removed": count, "tokens": candidates, "increase": loss} for name, loss in increases.items()]


def describe_deletions(rows: list[dict[str, Any]]) -> str:
    """Returns the mean increase of the loss for each map, over the sentences of `deletion_test`, in words."""
    by_map: dict[str, list[float]] = {}
    for row in rows:
        by_map.setdefault(row["map"], []).append(row["increase"])
    means = ", ".join(f"{name} {sum(values) / len(values):+.3f}" for name, values in by_map.items())
    sentences = len({row["sample"] for row in rows})
    return f"loss without the fifth of the tokens that a map ranks highest: {means} (mean; sentences: {sentences})"
