"""Softmax with a sink: an additional logit that takes a share of the weight and has no value."""

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.core.affine import AffineTerms
from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, refuse_options, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism, format_values, upcast
from fairseq_gpam.attention.core.lambdas import no_decay_parameter

# A power of two is exact in bf16: rounded below the clamp, the initial weight would have no gradient.
SMALLEST_WEIGHT = 2.0**-100


@register_mechanism
class SinkAttention(AffineMechanism):
    """Softmax attention whose heads need not attend to any key: each has a sink, learned or with a logit fixed at 0.

    A learned logit is the sink of openai/gpt-oss; s = 0 is softmax-off-by-one, which is stock attention with a zero key
    and a zero value appended (`add_zero_attn`).
    """

    name = "sink"
    formula = "P = exp(S)/(exp(s) + Σ exp(S)), S = QKᵀ/√D + M; s learned or 0"
    source = "openai/gpt-oss; off-by-one: Miller 2023, Attention Is Off By One"
    row_sum = "≤ 1"
    cost = "1×"
    neutral = (("sink_kind", "weight"),)
    has_fused = False
    options = (
        Option(
            "sink_kind",
            str,
            "learned",
            "the sink of each head: a learned logit s; a learned weight |w| = exp(s), initially 0; or s = 0 (softmax "
            "off by one)",
            choices=("learned", "weight", "off-by-one"),
        ),
        Option("sink_start", float, 0.0, "the initial logit of a learned sink"),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        if settings.sink_kind != "learned":
            refusals = (("sink_start", 0.0, "no --gpam-sink-start, because only a learned logit has an initial value"),)
            refuse_options(settings, f"--gpam-sink-kind {settings.sink_kind!r}", refusals)
        self.logits: Tensor
        self.weight: nn.Parameter | None = None
        if settings.sink_kind == "learned":
            self.logits = no_decay_parameter(torch.full((site.num_heads,), settings.sink_start))
        elif settings.sink_kind == "weight":
            self.weight = no_decay_parameter(torch.full((site.num_heads,), SMALLEST_WEIGHT))
        else:
            self.register_buffer("logits", torch.zeros(site.num_heads), persistent=False)

    def terms(self, inputs: AttentionInput) -> AffineTerms:
        if self.weight is None:
            return AffineTerms(sink=self.logits)
        if self.training and inputs.q.dtype == torch.float16:
            raise ValueError(
                "--gpam-sink-kind 'weight' (which --gpam-warm-start selects) is not allowed in fp16, where the "
                f"gradient of a weight of {SMALLEST_WEIGHT:.0e} is 0; allowed: fp32, bf16, or another kind"
            )
        # d exp(s)/d|w| is 1 however small the sink is; the gradient of a learned logit would vanish.
        logits = upcast(self.weight).abs().clamp(min=SMALLEST_WEIGHT).log()
        return AffineTerms(sink=logits.to(self.weight.dtype))

    def extra_repr(self) -> str:
        if self.weight is not None:
            return f"{super().extra_repr()}, weight {format_values(self.weight.abs())}"
        kind = f"s {format_values(self.logits)}" if isinstance(self.logits, nn.Parameter) else "off by one"
        return f"{super().extra_repr()}, {kind}"
