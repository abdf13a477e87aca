"""Properties common to all mechanisms: dropout of the weights, the fused backend, the registry."""

import importlib
import inspect
from pathlib import Path

import pytest
import torch
from contract import HEADS, settings
from tiny import OURS, build, sentences, unlist

from fairseq_gpam import options
from fairseq_gpam.attention import (
    REGISTRY,
    AttentionInput,
    AttentionMask,
    AttentionMechanism,
    Option,
    Site,
    build_mechanism,
    mechanisms,
)
from fairseq_gpam.attention.core import base
from fairseq_gpam.attention.core.affine import AffineTerms, affine_attention
from fairseq_gpam.attention.core.families import AffineMechanism, MatrixMechanism

LENGTH = 6
TESTS = Path(__file__).parents[1] / "mechanisms"


def in_a_stack(name, **chosen):
    """A mechanism of width LENGTH in the middle of three layers, after a first layer that has run."""
    shared = {}
    site = REGISTRY[name].sites[0]
    stack = [
        build_mechanism(
            name,
            Site(site, layer, 3, HEADS * LENGTH, HEADS, LENGTH, shared),
            settings(cog_everywhere=True, integral_signals=2, **chosen),
        ).double()
        for layer in (0, 1)
    ]
    return stack


HIDDEN = {
    *("softmax_rmsnorm", "differential", "gated", "rela", "dint", "gated_linear", "compressed"),
    *("zeros", "gated_deltanet", "laser"),
}
PLAIN = {"nap": {"nap_output": "none"}, "non": {"non_output": "none"}}


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_dropout_drops_the_weights_themselves(name):
    """With the unit matrix as values the output is the dropped matrix: each weight is 0 or P/(1−p)."""
    q, k = torch.randn(2, 4, HEADS, LENGTH, LENGTH, dtype=torch.float64)
    x = torch.randn(4, LENGTH, HEADS * LENGTH, dtype=torch.float64)
    eye = torch.eye(LENGTH, dtype=torch.float64).expand(4, HEADS, LENGTH, LENGTH)
    first, mechanism = in_a_stack(name, **PLAIN.get(name, {}))
    if name in HIDDEN:
        pytest.skip("what comes before or after the weighted sum hides the matrix, or dropout is refused")
    mask = AttentionMask(causal=REGISTRY[name].sites == ("decoder",))
    first(AttentionInput(q, k, eye, mask, x))
    output, weights = mechanism(AttentionInput(q, k, eye, mask, x, 0.5, True))
    # A diagonal value of `exclusive` is taken out, not dropped.
    kept = ~torch.eye(LENGTH, dtype=torch.bool) if name == "exclusive" else torch.ones(LENGTH, LENGTH).bool()
    dropped = (output == 0) & kept
    where = (weights.abs() > 1e-9) & kept
    assert 0.3 < (dropped & where).sum() / where.sum() < 0.7
    torch.testing.assert_close(output[~dropped & kept], 2 * weights[~dropped & kept], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_a_mechanism_shows_itself_and_its_facts(name):
    mechanism = in_a_stack(name)[1]
    assert f"{name}, {mechanism.site.name} layer 1" in repr(mechanism)
    for fact in ("formula", "source", "row_sum", "cost"):
        assert getattr(REGISTRY[name], fact)
    assert REGISTRY[name].__doc__


@pytest.mark.parametrize("name", sorted(REGISTRY))
def test_one_mechanism_is_one_file_and_one_test(name):
    module = importlib.import_module(REGISTRY[name].__module__)
    assert Path(module.__file__) == Path(mechanisms.__file__).parent / f"{name}.py"
    assert (TESTS / f"test_{name}.py").exists()


def takes_the_fused_backend(name):
    """Every mechanism either hands the backend to the shared core, or refuses it: both are tested below."""
    try:
        in_a_stack(name, backend="fused")
    except ValueError:
        return False
    return True


AFFINE = [name for name in sorted(REGISTRY) if takes_the_fused_backend(name)]


@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize("backend", ["reference", "fused"])
def test_the_family_goes_through_the_shared_core(name, backend, monkeypatch):
    """Every member hands its terms and the chosen backend to `affine_attention`, and to nothing else."""
    seen = []

    def core(*arguments, **named):
        seen.append(arguments[-1])
        return affine_attention(*arguments, **named)

    for module in {inspect.getmodule(one) for one in REGISTRY[name].__mro__}:
        if hasattr(module, "affine_attention"):
            monkeypatch.setattr(module, "affine_attention", core)
    q = torch.randn(2, HEADS, LENGTH, LENGTH, dtype=torch.float64)
    x = torch.randn(2, LENGTH, HEADS * LENGTH, dtype=torch.float64)
    for mechanism in in_a_stack(name, backend=backend):
        mechanism(AttentionInput(q, q, q, AttentionMask(), x))
    assert seen == [backend] * 2


@pytest.mark.parametrize("name", sorted(set(REGISTRY) - set(AFFINE)))
def test_no_silent_fall_back_from_the_fused_backend(name):
    with pytest.raises(ValueError, match=f"--gpam-backend 'fused' is not allowed with mechanism '{name}'"):
        in_a_stack(name, backend="fused")


def test_unscaled_scores_fit_fp16():
    q = torch.full((1, 1, 2, 64), 60.0, dtype=torch.float16)
    mechanism = build_mechanism("nap", Site("encoder", 0, 1, 64, 1, 64), settings(nap_output="none")).half()
    output, weights = mechanism(AttentionInput(q, q, q, AttentionMask(), q[:, 0], 0.0, True))
    assert output.isfinite().all() and weights.isfinite().all()


@pytest.fixture
def toy():
    """A mechanism as a newcomer would write it; removed from the registry afterwards."""

    class Toy(AffineMechanism):
        """Half of softmax attention."""

        name = "toy"
        formula = "P = size·softmax(QKᵀ/√D + M)"
        source = "this test"
        row_sum = "size"
        cost = "1×"
        options = (Option("toy_size", float, 0.5, "how much of softmax attention"),)

        def __init__(self, site, settings):
            super().__init__(site, settings)
            self.size = settings.toy_size

        def terms(self, inputs):
            return AffineTerms(positive=self.size)

    base.register_mechanism(Toy)
    base.register_mechanism(Toy)
    yield Toy
    unlist("toy")


def test_registering_makes_the_flags(toy):
    assert any(option.flag == "--gpam-toy-size" for option in options.all_options())
    model = build(
        "translation",
        OURS["translation"],
        "--gpam-mechanism",
        "toy",
        "--gpam-toy-size",
        "0.25",
        "--gpam-cross-mechanism",
        "softmax",
    )
    sizes = [getattr(module, "size", None) for module in model.modules() if isinstance(module, AttentionMechanism)]
    assert sorted(sizes, key=str) == [0.25] * 4 + [None] * 2
    with pytest.raises(ValueError, match="two mechanisms are named 'toy'"):
        base.register_mechanism(type("Other", (MatrixMechanism,), {"name": "toy"}))


def test_a_mechanism_is_chosen_for_each_site():
    names = {"encoder": "dnas", "decoder": "shaped", "cross": "gated"}
    flags = [word for site, name in names.items() for word in (f"--gpam-{site}-mechanism", name)]
    model = build("translation", OURS["translation"], "--gpam-mechanism", "softmax", *flags)
    found = {(one.site.name, one.name) for one in model.modules() if isinstance(one, AttentionMechanism)}
    assert found == set(names.items())
    assert sentences((3,)).shape == (1, 3)
