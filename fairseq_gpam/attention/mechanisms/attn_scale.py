"""AttnScale, which scales up the part of softmax attention that is not uniform, and FeatScale (Wang et al. 2022)."""

import torch
from torch import Tensor, nn

from fairseq_gpam.attention.core.affine import AffineTerms
from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism, format_values, upcast
from fairseq_gpam.attention.core.lambdas import no_decay_parameter


class FeatScale(nn.Module):
    """Scales the mean of the features over the tokens by 1+s and the rest by 1+t, one s and one t for each channel.

    X′ = (1+s)·mean(X) + (1+t)·(X − mean(X)), s and t learned from 0. Wang et al. 2022, arXiv 2203.05962.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mean_scale = no_decay_parameter(torch.zeros(width))
        self.rest_scale = no_decay_parameter(torch.zeros(width))

    def forward(self, features: Tensor, hidden: Tensor | None, causal: bool, past: dict[str, Tensor] | None) -> Tensor:
        """Maps features, T × B × C, to the same shape; `hidden` is bool B × T, True = padding, which does not count.

        With `causal` the mean at each token is over the tokens up to it, and `past` holds the sums over earlier tokens.
        """
        wide = upcast(features)
        shown = torch.ones_like(wide[..., :1])
        if hidden is not None:
            shown = shown * ~hidden.t().unsqueeze(-1)
        # The last channel counts the tokens.
        sums = torch.cat([wide * shown, shown], dim=-1)
        sums = sums.cumsum(dim=0) if causal else sums.sum(dim=0, keepdim=True)
        if past is not None:
            sums = sums + past["features"] if "features" in past else sums
            past["features"] = sums[-1]
        mean = sums[..., :-1] / sums[..., -1:].clamp(min=1)
        return (wide + self.mean_scale * mean + self.rest_scale * (wide - mean)).type_as(features)


@register_mechanism
class AttnScaleAttention(AffineMechanism):
    """Softmax attention whose high-frequency part is scaled by 1+λ, one λ for each head; λ = 0 is softmax attention.

    The low-pass part U, uniform over the keys visible to a row, keeps the weight 1: P = U + (1+λ)·(softmax − U), as in
    section 4.1. The authors' code has no masks; U over the visible keys, under a causal mask a running mean, is our
    reading.

    With `--gpam-attn-scale-features` FeatScale follows the output projection, as in the source, which offers it as an
    alternative. Its mean leaves out padding. In a decoder it is, at each token, the mean over the tokens up to it; this
    is our reading, because the source has only vision encoders. The authors' code adds the scaled parts twice, so s and
    t have twice the effect there. Cross-attention has no FeatScale.
    """

    name = "attn_scale"
    formula = "P = (1+λ)·softmax(QKᵀ/√D + M) − λ·U"
    source = "Wang et al. 2022, arXiv 2203.05962; VITA-Group/ViT-Anti-Oversmoothing"
    row_sum = "1"
    cost = "1×, and a mean of the values"
    neutral = (("attn_scale_start", 0.0),)
    options = (
        Option("attn_scale_start", float, 0.0, "the initial λ of every head"),
        Option(
            "attn_scale_features",
            bool,
            False,
            "FeatScale after the output projection of self-attention: in each channel, one learned factor scales the "
            "mean over the tokens and another scales the deviation from it",
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.scale = no_decay_parameter(torch.full((site.num_heads,), settings.attn_scale_start))
        self.features: FeatScale | None = None
        if settings.attn_scale_features:
            if site.name == "cross":
                raise ValueError(
                    "--gpam-attn-scale-features is not allowed for cross attention, which keeps no sums from one "
                    "decoding step to the next; allowed: encoder, decoder, with another --gpam-cross-mechanism"
                )
            self.features = FeatScale(site.embed_dim)
            self.key_positions = "all"

    def terms(self, inputs: AttentionInput) -> AffineTerms:
        scale = self.scale.view(-1, 1, 1)
        return AffineTerms(positive=1 + scale, uniform=scale)

    def after_projection(self, output: Tensor, inputs: AttentionInput) -> Tensor:
        if self.features is None:
            return output
        earlier = inputs.k.size(-2) - inputs.q.size(-2)
        if earlier and "features" not in (inputs.past or {}):
            raise ValueError(
                f"--gpam-attn-scale-features has no cached sums for {earlier} earlier keys; allowed: "
                "decoding from the first position, without --cross-self-attention"
            )
        causal = self.site.name == "decoder" or inputs.mask.causal
        return self.features(output, inputs.own_padding, causal, inputs.past)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, λ {format_values(self.scale)}"
