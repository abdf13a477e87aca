import math

import pytest
import torch
from conftest import SMALL

from fairseq_gpam.analysis import loading
from fairseq_gpam.analysis.attribution import relevance_map
from fairseq_gpam.analysis.collect import Measurement, collect, measure_samples, slopes
from fairseq_gpam.analysis.definitions import DEFINITIONS
from fairseq_gpam.analysis.metrics import log_log_slope


@pytest.fixture(scope="module")
def stock(trained):
    path = trained / "stock_translation" / "checkpoint_last.pt"
    return loading.from_checkpoint(str(path), str(trained / "translation"), "stock")


def fresh(trained, *flags, task="translation", arch="transformer", name="fresh"):
    return loading.from_architecture(["--arch", arch, *SMALL[task], *flags], str(trained / task), name, seed=1)


def test_a_stock_checkpoint_gives_every_metric_of_every_site(stock):
    samples = loading.choose_samples(stock, "test", 6)
    assert stock.updates == 2 and stock.arch == "transformer"
    found = collect(stock, samples, with_maps=samples.numbers[:1], paths=2)
    places = {
        (record["metric"], record["site"], record["layer"]) for record in found.records() if record["head"] is None
    }
    for metric in DEFINITIONS:
        if "lambda" in metric:
            continue
        sites = ("encoder", "decoder", "cross")
        layers = (0, 1)
        if metric in ("kurtosis", "mean_cosine") or metric.startswith(("residual", "stable", "effective", "massive")):
            sites, layers = ("encoder", "decoder"), (-1, 0, 1)
        if metric in ("previous_token_score", "induction_score"):
            sites = ("encoder", "decoder")
        if metric == "copying_score":
            sites = ("decoder",)
        for site in sites:
            for layer in layers:
                assert (metric, site, layer) in places, (metric, site, layer)
    for record in found.records():
        if record["metric"] == "row_sum":
            assert record["mean"] == pytest.approx(1, abs=1e-5)
        if record["metric"] == "negative_mass":
            assert record["mean"] == 0
    assert found.num_samples == 6


def test_gradients_do_not_depend_on_the_batches_and_are_per_sample_size(stock):
    samples = loading.choose_samples(stock, "test", 7)
    found = []
    for size in (1, 3, 7):
        measurement = Measurement(stock, ())
        measure_samples(measurement, samples.batches(size))
        found.append(measurement)
    stock.model.zero_grad()
    loss, sample_size, _ = stock.criterion(stock.model, samples.batch(samples.numbers))
    loss.backward()
    attention = stock.model.decoder.layers[1].encoder_attn
    expected = attention.q_proj.weight.grad.norm().item() / sample_size
    for measurement in found:
        assert measurement.values["query_gradient", "cross", 1, None] == [pytest.approx(expected, rel=1e-4)]
        relative = expected / attention.q_proj.weight.norm().item()
        assert measurement.values["query_gradient_relative", "cross", 1, None] == [pytest.approx(relative, rel=1e-4)]
        assert measurement.loss == pytest.approx(loss.item() / sample_size, rel=1e-4)
        assert measurement.sample_size == sample_size
    # padding in a batch changes no sample's numbers
    for key in found[0].values:
        alone, padded = (sorted(v for v in measurement.values[key] if v == v) for measurement in (found[0], found[2]))
        assert alone == pytest.approx(padded, rel=2e-2, abs=1e-4), key


def test_relevance_does_not_depend_on_how_positions_are_grouped(stock):
    samples = loading.choose_samples(stock, "test", 3)
    batch = samples.batch(samples.numbers[:1])
    whole = relevance_map(stock.model, batch)
    assert whole.shape == (batch["target"].size(1), batch["net_input"]["src_tokens"].size(1))
    assert (whole >= 0).all() and whole.sum() > 0
    assert torch.allclose(whole, relevance_map(stock.model, batch, copies=2), atol=1e-5)


def test_the_model_is_left_as_it_was(stock):
    before = {name: value.clone() for name, value in stock.model.state_dict().items()}
    samples = loading.choose_samples(stock, "test", 2)
    collect(stock, samples, ("skips", "mlps"), with_maps=samples.numbers[:1], paths=2)
    for name, value in stock.model.state_dict().items():
        assert value.dtype == before[name].dtype and torch.equal(value, before[name])


def test_lambdas_by_layer_and_head(trained):
    loaded = fresh(trained, "--gpam-lambda-plus", "0.25", "--gpam-lambda-minus", "0.75", arch="transformer_gpam")
    found = collect(loaded, loading.choose_samples(loaded, "test", 2), paths=0)
    assert found.values["lambda_plus", "cross", 1, None] == [0.25]
    assert found.values["lambda_minus", "encoder", 0, 2] == [0.75]
    row_sum = found.values["row_sum", "encoder", 0, None]
    assert row_sum == pytest.approx([0.5] * 2, abs=1e-5)
    assert min(found.values["negative_mass", "encoder", 0, None]) >= 0


def test_a_stock_language_model(trained):
    path = trained / "stock_language_modeling" / "checkpoint_last.pt"
    loaded = loading.from_checkpoint(str(path), str(trained / "language_modeling"), "lm")
    samples = loading.choose_samples(loaded, "test", 4)
    found = collect(loaded, samples, with_maps=samples.numbers[:1], paths=2)
    assert {key[1] for key in found.values} == {"decoder"}
    assert found.sample_maps[0].relevance is None
    assert found.sample_maps[0].maps["decoder", 0].shape[1:] == (len(found.sample_maps[0].target),) * 2


def test_names_are_the_parts_that_differ():
    assert loading.short_names(["/a/runs/stock/1/c.pt"]) == ["c"]
    assert loading.short_names(["/a/runs/stock/1/c.pt", "/a/runs/dagpam/1/c.pt"]) == ["stock", "dagpam"]
    assert loading.short_names(["/a/c1.pt", "/a/c2.pt"]) == ["c1", "c2"]
    assert loading.short_names(["/a/c1.pt", "/a/c1.pt"]) == ["c1 (1)", "c1 (2)"]


def measured(trained, mechanism, heads, *flags):
    """All measurements of a fresh language model with this mechanism and number of heads."""
    flags = ("--gpam-mechanism", mechanism, "--decoder-attention-heads", str(heads), *flags)
    loaded = fresh(trained, *flags, task="language_modeling", arch="transformer_lm_gpam")
    return collect(loaded, loading.choose_samples(loaded, "test", 2), paths=0)


def by_place(found, metric, layer=0):
    return {
        (record["site"], record["head"]): record["mean"]
        for record in found.records()
        if record["metric"] == metric and record["layer"] == layer
    }


def test_paired_heads_are_counted_once(trained):
    """The two heads of a pair share one map: two heads have no distance, and one value matrix of full width."""
    found = measured(trained, "differential", 2)
    assert math.isnan(by_place(found, "head_redundancy")["decoder", None])
    assert set(by_place(found, "copying_score")) == {("decoder", None), ("decoder", 1)}
    found = measured(trained, "differential", 4)
    assert set(by_place(found, "copying_score")) == {("decoder", None), ("decoder", 1), ("decoder", 3)}


@pytest.mark.parametrize(
    ("arch", "flags", "said"),
    [
        ("transformer", ("--no-cross-attention",), "no cross-attention"),
        ("transformer_gpam", ("--gpam-mechanism", "softmax:1,dagpam:1"), "encoder layer 0"),
        ("transformer_gpam", ("--gpam-mechanism", "differential"), "encoder layer 0"),
    ],
)
def test_a_model_without_relevance_says_why(trained, arch, flags, said):
    loaded = fresh(trained, *flags, arch=arch)
    samples = loading.choose_samples(loaded, "test", 2)
    found = collect(loaded, samples, with_maps=samples.numbers[:1], paths=0)
    assert said in found.refusals["relevance"]
    assert found.sample_maps[0].relevance is None


def test_one_undefined_residual_ratio_does_not_undefine_the_layers(trained):
    loaded = fresh(trained, task="language_modeling", arch="transformer_lm")
    found = Measurement(loaded, ("skips",))
    for layer, values in ((-1, [0.9, math.nan]), (0, [0.5, 0.5]), (1, [math.nan, math.nan])):
        found.values["residual_ratio", "decoder", layer, None] = values
    [row] = slopes(found)
    assert row["ratios"][:2] == [0.9, 0.5] and math.isnan(row["ratios"][2])


def test_in_a_mixture_each_lambda_is_that_of_its_own_heads(trained):
    found = measured(trained, "softmax:1,dagpam:1", 2, "--gpam-lambda-plus", "0.25")
    for name, value in (("lambda_plus", 0.25), ("lambda_minus", 0.5)):
        assert by_place(found, f"dagpam_{name}") == {("decoder", None): value}
    assert by_place(found, "row_sum")["decoder", 2] == pytest.approx(0.75, abs=1e-5)


@pytest.mark.slow
def test_the_copying_score_goes_through_embeddings_of_another_width(trained):
    flags = ("--decoder-input-dim", "24", "--decoder-output-dim", "24")
    loaded = fresh(trained, *flags, task="language_modeling", arch="transformer_lm")
    found = collect(loaded, loading.choose_samples(loaded, "test", 2), paths=0)
    decoder = loaded.model.decoder
    attention = decoder.layers[0].self_attn
    width = attention.head_dim
    for record in found.records():
        if record["metric"] == "copying_score" and record["layer"] == 0 and record["head"]:
            channels = slice(width * (record["head"] - 1), width * record["head"])
            tokens = decoder.project_in_dim(decoder.embed_tokens.weight)
            values = tokens @ attention.v_proj.weight[channels].T @ attention.out_proj.weight[:, channels].T
            logits = decoder.output_projection(decoder.project_out_dim(values)).detach().double()
            dictionary = loaded.task.target_dictionary
            words = [i for i, symbol in enumerate(dictionary.symbols) if i >= 4 and "madeupword" not in symbol]
            logits = logits[words][:, words]
            eigenvalues = torch.linalg.eigvals(logits - logits.mean(dim=1, keepdim=True))
            assert record["mean"] == pytest.approx((eigenvalues.real.sum() / eigenvalues.abs().sum()).item(), abs=1e-4)
            break
    else:
        raise AssertionError("no copying score")


@pytest.mark.slow
def test_relevance_of_signed_weights_is_not_negative(trained):
    loaded = fresh(trained, arch="transformer_gpam")
    loaded.model.eval()
    batch = loading.choose_samples(loaded, "test", 1).batches(1)[0]
    assert (relevance_map(loaded.model, batch) >= 0).all()


@pytest.mark.slow
def test_published_shape_without_skips_at_random_initialisation(trained):
    """The ratio falls doubly exponentially with softmax and stays higher with daGPAM, as far as float64 resolves it."""
    deep = ("--encoder-layers", "5", "--decoder-layers", "1", "--encoder-embed-dim", "64", "--decoder-embed-dim", "64")
    ratios = {}
    for arch in ("transformer", "transformer_gpam"):
        loaded = fresh(trained, *deep, arch=arch)
        found = collect(loaded, loading.choose_samples(loaded, "test", 8), ("skips", "mlps"), paths=0)
        means = [
            sum(found.values["residual_ratio", "encoder", layer, None])
            / len(found.values["residual_ratio", "encoder", layer, None])
            for layer in range(-1, 5)
        ]
        ratios[arch] = [ratio for ratio in means if ratio > found.floor]
    softmax, dagpam = ratios["transformer"], ratios["transformer_gpam"]
    slope, _, points = log_log_slope(softmax, floor=1e-14)
    assert points >= 4
    assert slope == pytest.approx(math.log(3), abs=0.6) and slope > 0.9
    assert len(dagpam) >= len(softmax)
    assert all(above > below for above, below in zip(dagpam[1:], softmax[1:], strict=False))


@pytest.mark.slow
def test_a_lambda_per_token_is_reported_as_its_mean_over_the_tokens_of_a_sentence(trained):
    """A row of daGPAM sums to 1+λ⁺−λ⁻, so that the mean of the row sums gives the mean of λ⁻."""
    flags = ("--gpam-lambda-source", "token", "--gpam-lambda-plus", "0.25")
    loaded = fresh(trained, *flags, arch="transformer_gpam")
    found = collect(loaded, loading.choose_samples(loaded, "test", 3), paths=0)
    for site in ("encoder", "decoder", "cross"):
        for head in (None, 1, 2):
            strengths = torch.tensor(found.values["lambda_minus", site, 1, head])
            row_sums = torch.tensor(found.values["row_sum", site, 1, head])
            assert strengths.shape == (3,) and (strengths != strengths[0]).any()
            torch.testing.assert_close(strengths, 1.25 - row_sums, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["dagpam:1,softmax:1", "gated", "coda", "differential"])
def test_other_mechanisms(trained, mechanism):
    flags = ("--gpam-mechanism", mechanism)
    loaded = fresh(trained, *flags, task="language_modeling", arch="transformer_lm_gpam")
    found = collect(loaded, loading.choose_samples(loaded, "test", 2), paths=0)
    assert ("negative_mass", "decoder", 1, None) in found.values


@pytest.mark.slow
def test_in_a_mixture_each_lambda_names_its_own_heads(trained):
    found = measured(trained, "softmax:2,dagpam:2", 4)
    assert set(by_place(found, "dagpam_lambda_plus")) == {("decoder", None), ("decoder", 3), ("decoder", 4)}
