"""The name, exact definition, source and plot of every number in a report.

A metric is declared at the function that computes it. Metrics without a function of their own are declared here.
"""

from dataclasses import replace

from fairseq_gpam.analysis import induction, metrics  # noqa: F401  (importing them declares their metrics)
from fairseq_gpam.attention.core.measures import DEFINITIONS, GPAM, Definition

SWITCHES = ("skips", "mlps", "layer-norms")
"""What `Probe(without=…)` takes out."""
WEIGHTS = ("query", "key", "value")

for _name in ("residual_norm", "residual_ratio", "mean_cosine", "stable_rank", "effective_rank"):
    DEFINITIONS[f"attention_output_{_name}"] = replace(
        DEFINITIONS[_name],
        label=f"{DEFINITIONS[_name].label} of the attention's output",
        definition=f"{DEFINITIONS[_name].definition}; X = what the attention adds, before the skip",
    )
for _name in WEIGHTS:
    _weight = f"W_{_name[0].upper()}"
    DEFINITIONS[f"{_name}_gradient"] = _gradient = Definition(
        f"{_name}-weight gradient",
        f"‖dL/d{_weight}‖_F of the summed loss over all samples, divided by the sample size, unclipped",
        GPAM + ", Figure 4",
        logarithmic=True,
    )
    DEFINITIONS[f"{_name}_gradient_relative"] = replace(
        _gradient, label=f"relative {_gradient.label}", definition=f"the gradient's norm over ‖{_weight}‖_F"
    )
DEFINITIONS["lambda_plus"] = Definition("λ⁺", "the weight that the positive branch has above 1", GPAM)
DEFINITIONS["lambda_minus"] = Definition("λ⁻", "the weight of the negative branch", GPAM)

GROUPS: dict[str, tuple[str, ...]] = {
    "Rank of the hidden states": ("residual_ratio", "residual_ratio_argmin", "mean_cosine"),
    "Spectrum of the hidden states": ("residual_norm", "stable_rank", "effective_rank"),
    "Rank of the attention's output": tuple(
        f"attention_output_{name}" for name in ("residual_ratio", "mean_cosine", "effective_rank")
    ),
    "Signs and sums of the attention weights": ("row_sum", "negative_mass", "head_redundancy"),
    "Shape of the attention weights": ("entropy_normalised", "entropy", "spectral_gap"),
    "Attention sinks": ("sink_rate", "first_token_share"),
    "Softmax Jacobian": ("softmax_jacobian_l1", "softmax_jacobian_frobenius"),
    "Gradients": tuple(f"{name}_gradient" for name in WEIGHTS),
    "Gradients relative to the weights": tuple(f"{name}_gradient_relative" for name in WEIGHTS),
    "Activations": ("massive_activation_1", "massive_activation_3", "kurtosis"),
    "QK eigenspectrum": ("qk_eigenvalue_mean", "qk_eigenvalue_variance"),
    "Induction heads": ("previous_token_score", "induction_score", "copying_score"),
    "λ by layer": ("lambda_plus", "lambda_minus"),
}
"""The panels of the report's curves; the tables hold every metric."""


def describe(metric: str) -> Definition:
    """Returns a metric's definition; a metric that is not listed (a λ of another mechanism) is labelled by its name."""
    return DEFINITIONS.get(metric) or Definition(metric.replace("_", " "), "a coefficient of the mechanism", "–")
