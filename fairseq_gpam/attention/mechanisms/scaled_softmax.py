"""(1+λ⁺)·softmax: the control for the factor 1+λ⁺ of daGPAM."""

from fairseq_gpam.attention.core.affine import AffineTerms
from fairseq_gpam.attention.core.base import AttentionInput, Settings, Site, register_mechanism
from fairseq_gpam.attention.core.families import AffineMechanism
from fairseq_gpam.attention.core.lambdas import LAMBDA_PLUS_OPTIONS, build_lambda, is_trained


@register_mechanism
class ScaledSoftmaxAttention(AffineMechanism):
    """(1+λ⁺)·softmax: daGPAM without its negative branch; λ⁺ = 0 is softmax attention."""

    name = "scaled_softmax"
    formula = "P = (1+λ⁺)·softmax(QKᵀ/√D + M)"
    source = "a control of this project"
    row_sum = "1+λ⁺"
    cost = "1×"
    neutral = (("lambda", "trainable"), ("lambda_max", None), ("lambda_plus", 0.0))
    options = LAMBDA_PLUS_OPTIONS

    def __init__(self, site: Site, settings: Settings) -> None:
        super().__init__(site, settings)
        if settings.warm_start and not is_trained("lambda_plus", settings):
            raise ValueError(
                "--gpam-lambda-plus-training 'fixed' is not allowed with --gpam-warm-start and mechanism "
                f"{self.name!r}, which would stay softmax attention; allowed: trainable"
            )
        self.lambda_plus = build_lambda("lambda_plus", self.name, site, settings)

    def terms(self, inputs: AttentionInput) -> AffineTerms:
        return AffineTerms(positive=1 + self.lambda_plus())
