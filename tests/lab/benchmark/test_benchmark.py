"""The benchmark compares equal work and writes what it measured. No test depends on a time."""

import argparse
import json

import pytest
import torch
from quick import first

from fairseq_gpam.attention.core import matmul
from fairseq_gpam.lab.benchmark import cases, cli, memory
from fairseq_gpam.lab.benchmark.cases import Candidate, Shape, all_cases, core_pair, layer_pair
from fairseq_gpam.lab.benchmark.shapes import label
from fairseq_gpam.lab.benchmark.timing import paired

TINY = {
    "iwslt": Shape(6, 3, 16, 24, 2, ("encoder", "decoder")),
    "lm512": Shape(9, 2, 16, 24, 2, ("lm",)),
}


CHOSEN = [("layer", "iwslt"), (",".join((*cli.LEVELS, "memory", "scaling")), "iwslt,lm512")]


def parsed(*words):
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(cases, "SHAPES", TINY)
    monkeypatch.setattr(cli, "SCALING_LENGTHS", (256, 512, 1024))
    monkeypatch.setattr(memory, "LENGTHS", (256, 512, 1024))
    monkeypatch.setattr(cases, "VOCABULARY", 20)
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled
    yield
    torch.set_num_threads(threads)
    torch.backends.mkldnn.set_flags(onednn)


@pytest.mark.parametrize(("levels", "shapes"), first(1, CHOSEN))
def test_every_level_is_measured_written_and_drawn(tiny, tmp_path, capsys, levels, shapes):
    pytest.importorskip("matplotlib")
    file, picture = tmp_path / "benchmark.json", tmp_path / "benchmark.png"
    words = ["--pairs", "2", "--shapes", shapes, "--levels", levels, "--mechanisms", "dagpam"]
    assert cli.run(parsed(*words, "--json", str(file), "--picture", str(picture))) == 0
    results = json.loads(file.read_text())
    measured = {(row["level"], row["shape"], row["kind"], row["mode"], row["dropout"]) for row in results["ratios"]}
    assert {level for level, *_ in measured} == set(levels.split(",")) - {"memory", "scaling"}
    for kind in ("encoder", "decoder"):
        assert {("layer", "iwslt", kind, "training", 0.1), ("layer", "iwslt", kind, "inference", 0.0)} <= measured
    for row in results["ratios"]:
        assert 0 < row["lower"] <= row["median"] <= row["upper"]
        assert row["pairs"] == 2
    assert {row["what"] for row in results["memory"]} == ({"stock", "dagpam:auto"} if "memory" in levels else set())
    assert [row["lengths"] for row in results["scaling"]] == ([[256, 512, 1024]] if "scaling" in levels else [])
    assert results["machine"]["threads"] == 1
    assert results["machine"]["linear_maps_by"] in ("oneDNN", "PyTorch")
    assert picture.stat().st_size > 10_000
    assert f"written: {file}" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_a_missing_gpu_is_refused(capsys):
    with pytest.raises(SystemExit):
        parsed("--device", "cuda")
    assert "argument --device: 'cuda' is not available; available: cpu" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", cli.DTYPES)
def test_on_a_gpu_every_level_is_measured_there(tiny, dtype, tmp_path):
    file = tmp_path / "benchmark.json"
    words = ["--pairs", "2", "--shapes", "iwslt,lm512", "--mechanisms", "softmax,dagpam", "--dtype", dtype]
    assert cli.run(parsed(*words, "--device", "cuda", "--json", str(file))) == 0
    results = json.loads(file.read_text())
    assert results["machine"]["device"] == torch.cuda.get_device_name(0)
    assert {row["level"] for row in results["ratios"]} == set(cli.LEVELS)
    assert all(value > 0 for row in results["memory"] for value in row["mebibytes"])


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch has no oneDNN")
def test_without_onednn_it_computes_no_product(tiny, monkeypatch, tmp_path):
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(matmul, "WORTH_ONEDNN", 0)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", lambda *_: pytest.fail("oneDNN made a product"))
    file = tmp_path / "benchmark.json"
    words = ["--pairs", "2", "--shapes", "iwslt", "--levels", "layer", "--json", str(file), "--without-onednn"]
    assert cli.run(parsed(*words)) == 0
    assert json.loads(file.read_text())["machine"]["linear_maps_by"] == "PyTorch"


@pytest.mark.parametrize("flag", ["--shapes", "--levels", "--mechanisms", "--backends"])
def test_an_unknown_name_is_refused_with_the_known_ones(flag, capsys):
    with pytest.raises(SystemExit):
        parsed(flag, "nothing")
    message = capsys.readouterr().err
    assert flag in message
    assert "'nothing' is not allowed; allowed: " in message


def test_pairs_alternate_in_who_goes_first():
    calls = []
    ratio = paired(lambda: calls.append("stock"), lambda: calls.append("ours"), pairs=4, warmup=0)
    assert calls == ["ours", "stock", "stock", "ours"] * 2
    assert ratio["pairs"] == 4


def test_exponent():
    assert cli.exponent([128, 256, 512], [3 * n**1.5 for n in (128, 256, 512)]) == pytest.approx(1.5)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "lm"])
def test_a_layer_is_compared_with_the_unmodified_one(kind, monkeypatch):
    """With softmax attention, our layer gives the same output as fairseq's own class."""
    seen = []
    monkeypatch.setattr(cases, "_backward", lambda output: seen.append(output.detach().clone()))
    shape = Shape(6, 3, 16, 24, 2, (kind,))
    stock, ours = layer_pair(Candidate("softmax", "auto"), shape, kind, 0.0, training=True)
    for step in (stock, ours):
        torch.manual_seed(5)
        step()
    torch.testing.assert_close(*seen)


def test_the_core_of_stock_is_softmax_attention(monkeypatch):
    seen = []
    monkeypatch.setattr(cases, "_backward", lambda output: seen.append(output.detach().clone()))
    for step in core_pair(Candidate("softmax", "auto"), Shape(7, 2, 16, 0, 2, ("lm",)), 0.0):
        step()
    torch.testing.assert_close(*seen)


def test_every_case_has_a_name_of_its_own():
    names = [label(case) for case, _ in all_cases(list(cli.SHAPES), list(cli.LEVELS))]
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_in_half_precision_models_and_inputs_have_that_dtype(tiny, tmp_path):
    file = tmp_path / "benchmark.json"
    words = ["--pairs", "2", "--shapes", "iwslt,lm512", "--levels", "core,layer,decoding,model,generation"]
    assert cli.run(parsed(*words, "--dtype", "bfloat16", "--json", str(file))) == 0
    measured = json.loads(file.read_text())
    assert measured["machine"]["dtype"] == "bfloat16"
    assert measured["machine"]["device"] == "cpu"
    assert torch.get_default_dtype() == torch.float32
    with cases.creating("cpu", torch.bfloat16):
        model = cases._model("transformer_iwslt_de_en", Candidate("dagpam", "auto"), share_all_embeddings=True)
        tensors = [*model.parameters(), *model.buffers(), torch.randn(1)]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.bfloat16}


@pytest.mark.slow
def test_too_few_pairs_are_refused():
    with pytest.raises(ValueError, match="--pairs 1 is not allowed; allowed: 2 or more"):
        paired(lambda: None, lambda: None, pairs=1)


@pytest.mark.slow
def test_measured_memory_includes_the_matrix_that_stock_allocates():
    """1024 × 1024 scores of 2 heads, fp32, with dropout: 8 MiB for each copy."""
    assert memory.measure("stock", 1024, 0.1) > 16
    assert memory.measure("dagpam:auto", 1024, 0.1) < memory.measure("stock", 1024, 0.1)


@pytest.mark.slow
def test_a_failed_measurement_says_why():
    with pytest.raises(ValueError, match="nothing"):
        memory.measure("nothing:auto", 256, 0.0)
