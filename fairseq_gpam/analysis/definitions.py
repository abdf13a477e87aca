"""What every number in a report is: its name, exact definition and source, and how it is drawn."""

from __future__ import annotations

from dataclasses import dataclass

DONG = "Dong et al. 2021, arXiv 2103.03404"
GPAM = "Heo & Choi 2024, arXiv 2410.15578"


@dataclass(frozen=True)
class Definition:
    """One metric; `logarithmic` draws it on a logarithmic axis."""

    label: str
    definition: str
    source: str
    logarithmic: bool = False


_TOKENS = {
    "residual_norm": Definition("residual norm", "‖X − 1xᵀ‖, ‖·‖ = sqrt(‖·‖₁·‖·‖_∞), x the mean token", DONG, True),
    "residual_ratio": Definition(
        "residual ratio (mean token)", "‖X − 1xᵀ‖ / ‖X‖, ‖·‖ = sqrt(‖·‖₁·‖·‖_∞), x the mean token", DONG
    ),
    "residual_ratio_argmin": Definition(
        "residual ratio (best token)", "the same with the best x that a descent finds (an upper bound)", DONG
    ),
    "mean_cosine": Definition(
        "mean pairwise cosine", "(‖Σ x_i/|x_i|‖² − n) / (n(n−1)) over the n tokens of a sequence", GPAM + ", Figure 4"
    ),
    "stable_rank": Definition("stable rank", "‖X‖_F² / ‖X‖₂²", "Rudelson & Vershynin 2007"),
    "effective_rank": Definition(
        "effective rank", "exp(−Σ p log p), p = s/Σs, s the singular values of X", "Roy & Vetterli 2007"
    ),
}

DEFINITIONS: dict[str, Definition] = {
    **_TOKENS,
    **{
        f"attention_output_{name}": Definition(
            f"{entry.label} of the attention's output",
            entry.definition + "; X = what the attention adds, before the skip",
            entry.source,
            entry.logarithmic,
        )
        for name, entry in _TOKENS.items()
        if name != "residual_ratio_argmin"
    },
    "spectral_gap": Definition(
        "spectral gap", "s₁/s₂, the two largest singular values of P", "arXiv 2410.07799", logarithmic=True
    ),
    "entropy": Definition(
        "entropy (nats)", "−Σ_j a log a, a = |P| / Σ_j |P|, mean over rows", "Zhai et al. 2023, arXiv 2303.06296"
    ),
    "entropy_normalised": Definition(
        "normalised entropy",
        "the entropy of each row over log n, n the keys it sees; rows with one key left out",
        "Zhai et al. 2023, arXiv 2303.06296",
    ),
    "row_sum": Definition("row sum", "Σ_j P_ij, mean over rows", GPAM),
    "negative_mass": Definition("negative mass", "Σ max(−P, 0) / Σ |P|", GPAM),
    "sink_rate": Definition(
        "sink rate",
        "share of maps whose first token gets more than 0.3 on average of the rows",
        "Gu et al. 2025, arXiv 2410.10781",
    ),
    "first_token_share": Definition(
        "first-token share", "Σ_i |P_i1| / Σ_ij |P_ij|", "Gu et al. 2025, arXiv 2410.10781"
    ),
    "head_redundancy": Definition(
        "distance between heads", "1 − cos of two heads' maps as vectors, mean over pairs: 0 = redundant", "–"
    ),
    "softmax_jacobian_l1": Definition(
        "softmax Jacobian, L1", "2(1 − Σp²), p = softmax(QKᵀ/√D + M), mean over rows", GPAM + ", Lemma 3"
    ),
    "softmax_jacobian_frobenius": Definition(
        "softmax Jacobian, Frobenius", "sqrt(Σp² − 2Σp³ + (Σp²)²), mean over rows", "closed form"
    ),
    **{
        f"{name}_gradient": Definition(
            f"{name}-weight gradient",
            f"‖dL/dW_{name[0].upper()}‖_F of the summed loss over all samples, divided by the sample size, unclipped",
            GPAM + ", Figure 4",
            logarithmic=True,
        )
        for name in ("query", "key", "value")
    },
    **{
        f"{name}_gradient_relative": Definition(
            f"relative {name}-weight gradient",
            f"the gradient's norm over ‖W_{name[0].upper()}‖_F",
            GPAM + ", Figure 4",
            logarithmic=True,
        )
        for name in ("query", "key", "value")
    },
    **{
        f"massive_activation_{rank}": Definition(
            f"massive activation, {name}",
            f"the {name} |h| over the median |h| of a sequence",
            "Sun et al. 2024, arXiv 2402.17762",
            logarithmic=True,
        )
        for rank, name in ((1, "largest"), (2, "second largest"), (3, "third largest"))
    },
    "kurtosis": Definition(
        "kurtosis", "E(h−μ)⁴ / (E(h−μ)²)² over tokens and channels, 3 for a normal distribution", "–", logarithmic=True
    ),
    "qk_eigenvalue_mean": Definition(
        "QK eigenvalues, mean", "mean of the D eigenvalues of W_Q W_Kᵀ of a head", "Bao et al. 2024, arXiv 2402.02098"
    ),
    "qk_eigenvalue_variance": Definition(
        "QK eigenvalues, variance",
        "mean |μ − mean|² of the D eigenvalues of W_Q W_Kᵀ of a head",
        "Bao et al. 2024, arXiv 2402.02098",
    ),
    "previous_token_score": Definition(
        "previous-token score", "mean weight of a query on the token before it", "Olsson et al. 2022, arXiv 2209.11895"
    ),
    "induction_score": Definition(
        "induction score",
        "mean weight of a query on the tokens that followed earlier occurrences of its own token",
        "Olsson et al. 2022, arXiv 2209.11895",
    ),
    "copying_score": Definition(
        "copying score",
        "Σ Re μ / Σ |μ| over the eigenvalues μ of W_U W_O W_V W_E of a head, layer norms left out",
        "Elhage et al. 2021, transformer-circuits.pub/2021/framework",
    ),
    "lambda_plus": Definition("λ⁺", "the weight that the positive branch has above 1", GPAM),
    "lambda_minus": Definition("λ⁻", "the weight of the negative branch", GPAM),
}

GROUPS: dict[str, tuple[str, ...]] = {
    "Rank of the hidden states": ("residual_ratio", "residual_ratio_argmin", "mean_cosine"),
    "Spectrum of the hidden states": ("residual_norm", "stable_rank", "effective_rank"),
    "Rank of the attention's output": (
        "attention_output_residual_ratio",
        "attention_output_mean_cosine",
        "attention_output_effective_rank",
    ),
    "Signs and sums of the attention weights": ("row_sum", "negative_mass", "head_redundancy"),
    "Shape of the attention weights": ("entropy_normalised", "entropy", "spectral_gap"),
    "Attention sinks": ("sink_rate", "first_token_share"),
    "Softmax Jacobian": ("softmax_jacobian_l1", "softmax_jacobian_frobenius"),
    "Gradients": ("query_gradient", "key_gradient", "value_gradient"),
    "Gradients relative to the weights": (
        "query_gradient_relative",
        "key_gradient_relative",
        "value_gradient_relative",
    ),
    "Activations": ("massive_activation_1", "massive_activation_3", "kurtosis"),
    "QK eigenspectrum": ("qk_eigenvalue_mean", "qk_eigenvalue_variance"),
    "Induction heads": ("previous_token_score", "induction_score", "copying_score"),
    "λ by layer": ("lambda_plus", "lambda_minus"),
}
"""The panels of the report's curves; the tables hold every metric."""


def describe(metric: str) -> Definition:
    """Returns a metric's definition; one that is not listed (a λ of another mechanism) goes by its name."""
    return DEFINITIONS.get(metric) or Definition(metric.replace("_", " "), "a coefficient of the mechanism", "–")
