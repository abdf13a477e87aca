"""`--criterion answer_cross_entropy`: the loss of the answers alone, in texts where a word "?…" asks for the next."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.logging import metrics
from torch import nn

MARK = "?"


@register_criterion("answer_cross_entropy")
class AnswerCrossEntropy(FairseqCriterion):
    """Cross-entropy of the words that follow a word beginning with "?", and how many of them the model predicts.

    Raises ValueError if the task's dictionary has no such word.
    """

    def __init__(self, task: Any) -> None:
        super().__init__(task)
        self.asks = torch.tensor([word.startswith(MARK) for word in task.source_dictionary.symbols])
        if not self.asks.any():
            raise ValueError(
                f"--criterion answer_cross_entropy is not allowed for a text in which no word begins with {MARK!r}; "
                "allowed: cross_entropy"
            )

    def forward(
        self, model: nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[torch.Tensor, int, dict[str, Any]]:
        """Returns the summed loss in nats, the number of answers, and what is logged; as fairseq's criteria do."""
        asked = self.asks.to(sample["target"].device)[sample["net_input"]["src_tokens"]]
        logits = model(**sample["net_input"])[0][asked]
        target = sample["target"][asked]
        losses = F.cross_entropy(logits.float(), target, reduction="sum" if reduce else "none")
        logged = {
            "loss": losses.data.sum(),
            "correct": (logits.argmax(dim=-1) == target).sum(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": len(target),
        }
        return losses, len(target), logged

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Logs the loss (base 2) and the share of right answers; batches without a question weigh nothing."""
        answers = sum(log.get("sample_size", 0) for log in logging_outputs)
        loss, correct = (float(sum(log.get(key, 0) for log in logging_outputs)) for key in ("loss", "correct"))
        metrics.log_scalar("loss", loss / max(answers, 1) / math.log(2), answers, round=4)
        metrics.log_scalar("accuracy", correct / max(answers, 1), answers, round=4)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True
