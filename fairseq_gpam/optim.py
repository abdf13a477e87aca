"""fairseq's Adam that leaves the λ's out of weight decay."""

from typing import Any

from fairseq.optim import register_optimizer
from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
from torch import nn

from fairseq_gpam.attention.core.lambdas import NO_DECAY_GROUP


@register_optimizer("gpam_adam", dataclass=FairseqAdamConfig)
class GPAMAdam(FairseqAdam):
    """`--optimizer gpam_adam`: `adam` that exempts the λ's and similar coefficients of mechanisms from --weight-decay.

    Works in every precision, with `--fp16` only with `--fp16-no-flatten-grads`: fairseq's flattened gradients do not
    distinguish parameters, and are refused if there is a weight decay.
    """

    def __init__(self, cfg: Any, params: Any) -> None:
        parameters: list[nn.Parameter] = list(params)
        exempt = [p for p in parameters if getattr(p, "param_group", None) == NO_DECAY_GROUP]
        others = [p for p in parameters if getattr(p, "param_group", None) != NO_DECAY_GROUP]
        if not exempt and len(parameters) == 1 and cfg.weight_decay:
            raise ValueError("--optimizer gpam_adam with --weight-decay needs --fp16-no-flatten-grads under --fp16")
        groups: list[dict[str, Any]] = [{"params": others}]
        if exempt:
            groups.append({"params": exempt, "weight_decay": 0.0})
        super().__init__(cfg, groups)

    def load_state_dict(self, state_dict: dict[str, Any], optimizer_overrides: dict[str, Any] | None = None) -> None:
        """Loads the state; --optimizer-overrides may set another weight decay, which the exempt ones do not get."""
        super().load_state_dict(state_dict, optimizer_overrides)
        for group in self.param_groups[1:]:
            group["weight_decay"] = 0.0
