"""NeuTRENO: softmax attention pulled back towards the first layer's values (Nguyen, Nguyen & Baraniuk 2023)."""

from torch import Tensor

from fairseq_gpam.attention.core.base import AttentionInput, Option, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.causal import first_layer_values
from fairseq_gpam.attention.core.families import AffineMechanism
from fairseq_gpam.attention.core.masks import zero_rows


@register_mechanism
class NeutrenoAttention(AffineMechanism):
    """Softmax self-attention plus λ(V⁰ − V); the first layer is softmax attention, and so are all for λ = 0.

    In the authors' code λ is 0.6 for vision and 0.4 for language, and gradients flow through V⁰ too.

    The first layer stores its values in `site.shared` and the last layer removes them. In decoding they are the values
    of the newest positions only, so nothing needs to be cached. Every layer must run exactly once, in order.
    """

    name = "neutreno"
    formula = "O = softmax(QKᵀ/√D + M)·V + λ·(V⁰ − V), V⁰ of the first layer"
    source = "Nguyen et al. 2023, arXiv 2312.00751; tamnguyen9520/NeuTRENO_NeurIPS2024"
    row_sum = "1, before V⁰ − V"
    cost = "1×"
    why_never_neutral = "its λ is not trained, so λ = 0 would stay softmax attention"
    sites = ("encoder", "decoder")
    needs_every_layer = True
    key_positions = "own"
    options = (
        Option(
            "neutreno_lambda",
            float,
            0.4,
            "the strength λ of the pull towards the first layer's values; 0.6 for vision in the source",
            former_defaults=(0.6,),
        ),
    )

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        self.strength: float = settings.neutreno_lambda

    def finish(self, output: Tensor, inputs: AttentionInput) -> Tensor:
        num_queries, num_keys = output.size(-2), inputs.v.size(-2)
        current = inputs.v[..., num_keys - num_queries :, :]
        first = first_layer_values(self.name, self.site, current)
        fully_masked = inputs.mask.fully_masked(num_queries, num_keys, inputs.v.device)
        return zero_rows(output + self.strength * (first - current), fully_masked)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, λ {self.strength:g}"
