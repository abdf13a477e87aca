"""The Python interface against fairseq's own commands, and the page that documents it, run as it stands."""

import math
import re
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
import sentencepiece
import torch
from conftest import generate, hypotheses, train_translation
from test_language_model import evaluate, loss

from fairseq_gpam.hub import from_pretrained

PAGE = Path(__file__).parents[2] / "examples" / "python.md"
WORDS = "--remove-bpe=sentencepiece"


@pytest.fixture(scope="module")
def subwords(command, folder):
    """A translation model of SentencePiece subwords: its folder of data, its checkpoint, the SentencePiece model."""
    prefix = folder / "spm"
    text = [line for split in "ab" for line in (folder / f"train.{split}").read_text().splitlines()]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text), model_prefix=str(prefix), vocab_size=24, minloglevel=2
    )
    encoder = sentencepiece.SentencePieceProcessor(model_file=f"{prefix}.model")
    for path in [folder / f"{split}.{side}" for split in ("train", "valid", "test") for side in "ab"]:
        lines = path.read_text().splitlines()
        pieces = "".join(" ".join(encoder.encode(line, out_type=str)) + "\n" for line in lines)
        (folder / f"spm-{path.name}").write_text(pieces)
    splits = [argument for split in ("train", "valid", "test") for argument in (f"--{split}pref", f"spm-{split}")]
    command("fairseq-preprocess", "-s", "a", "-t", "b", *splits, "--destdir", "subwords", user_dir=False)
    data, save_dir = folder / "subwords", folder / "subword_model"
    epochs = ["--max-epoch", "6", "--no-epoch-checkpoints", "--disable-validation"]
    train_translation(command, data, save_dir, *epochs)
    return data, save_dir / "checkpoint_last.pt", Path(f"{prefix}.model")


@pytest.fixture(scope="module")
def translator(subwords):
    data, checkpoint, model = subwords
    return from_pretrained(checkpoint, data=data, sentencepiece=model)


@pytest.fixture
def sentences(folder):
    return (folder / "test.a").read_text().splitlines()


def test_translations_are_those_of_fairseq_generate(command, subwords, translator, sentences):
    expected = hypotheses(generate(command, *subwords[:2], WORDS, "--beam", "5").stdout)
    assert dict(enumerate(translator.translate(sentences, beam=5))) == expected
    assert translator.translate(sentences[0]) == expected[0]
    assert translator.translate([]) == []


def test_scores_are_those_of_fairseq_generate_with_references(command, subwords, translator, sentences, folder):
    lines = re.findall(
        r"^P-(\d+)\t(.*)$", generate(command, *subwords[:2], WORDS, "--score-reference").stdout, flags=re.M
    )
    # fairseq-generate prints binary logarithms.
    expected = {int(number): [float(bits) * math.log(2) for bits in row.split()] for number, row in lines}
    scores = translator.score(sentences, (folder / "test.b").read_text().splitlines(), batch_size=7)
    for number, score in enumerate(scores):
        assert score.log_probabilities == pytest.approx(expected[number], abs=2e-4)
        assert score.tokens[-1] == "</s>"
    with pytest.raises(ValueError, match="41 sources and 1 targets"):
        translator.score(sentences, ["W1"])


def test_attention_while_generating_is_attention_of_the_finished_translation(translator, sentences):
    from fairseq_gpam import register_attention_hook

    seen = {}
    handle = register_attention_hook(
        translator.model, lambda layer, site, weights: seen.setdefault((site, layer), []).append(weights[0])
    )
    translation = translator.generate([translator.encode(sentences[3])], beam=1)[0][0]["tokens"]
    handle.remove()
    attention = translator._attention([], translation, translator._inputs([sentences[3]], [translation]))
    assert attention.weights.keys() == seen.keys() == {("encoder", 0), ("decoder", 0), ("cross", 0)}
    for key, steps in seen.items():
        row = 0
        for step in steps:
            stop = row + step.size(1)
            assert torch.allclose(attention.weights[key][:, row:stop, : step.size(2)], step, atol=1e-5)
            row = stop
        assert row == attention.weights[key].size(1)


def test_language_model_scores_are_those_of_eval_lm(command, monolingual, language_model, folder):
    checkpoint = language_model[0] / "checkpoint_last.pt"
    model = from_pretrained(checkpoint, data=monolingual)
    scores = model.score((folder / "valid.a").read_text().splitlines(), batch_size=6)
    count = sum(len(score.tokens) for score in scores)
    bits = -sum(score.total for score in scores) / count / math.log(2)
    assert bits == pytest.approx(loss(evaluate(command, monolingual, checkpoint).text), abs=1e-3)
    assert model.complete("w3 w1", max_len_b=3).startswith("w3 w1")
    weights = model.attention("w3 w1 w4").weights
    assert weights["decoder", 0].shape == (2, 4, 4)
    assert (weights["decoder", 0].triu(1) == 0).all()
    with pytest.raises(ValueError, match="20 tokens; allowed by the model: 16"):
        model.score([" ".join(["w1"] * 19)])


def test_text_is_prepared_by_sacremoses_and_subword_nmt(subwords, tmp_path):
    from subword_nmt.apply_bpe import BPE
    from subword_nmt.learn_bpe import learn_bpe

    text = ["Hello, well-known world!", "hello world, hello"]
    with open(tmp_path / "codes", "w") as codes:
        learn_bpe(text, codes, 10)
    hub = from_pretrained(subwords[1], subwords[0], tokenizer="moses", subword_nmt=tmp_path / "codes", lowercase=True)
    tokens = hub.tokenize(text[0])
    assert tokens == "hello , well @-@ known world !"
    with open(tmp_path / "codes") as codes:
        assert hub.apply_bpe(tokens) == BPE(codes).process_line(tokens)
    assert hub.detokenize(hub.remove_bpe(hub.apply_bpe(tokens))) == "hello, well-known world!"


def test_the_code_of_the_page_runs(subwords, language_model, monolingual, tmp_path, monkeypatch):
    links = {"data-bin": subwords[0], "checkpoint.pt": subwords[1], "spm.model": subwords[2]}
    links |= {"data-bin-lm": monolingual, "language-model.pt": language_model[0] / "checkpoint_last.pt"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)
    assert len(blocks) == 5
    names = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)
    matrices = np.load("attention.npz")
    assert sorted(matrices) == ["cross-0", "decoder-0", "encoder-0"]
    steps = matrices["decoder-0"].shape[1]
    assert matrices["decoder-0"].shape == (2, steps, steps)
    assert matrices["cross-0"].shape[1:] == (steps, matrices["encoder-0"].shape[2])


@pytest.mark.slow
def test_the_notebook_runs(command, folder, subwords, tmp_path, monkeypatch):
    """Slow because it trains two models and starts a Jupyter kernel."""
    data, _, model = subwords
    text = tmp_path / "data/bible-de-en"
    for path, target in (
        *((tmp_path / "data-bin/bible-de-en", data), (text / "subword/spm.model", model)),
        *((text / "test.de", folder / "test.a"), (text / "test.en", folder / "test.b")),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)
    for name, arch in (("stock", "transformer"), ("dagpam", "transformer_gpam")):
        sizes = ["--decoder-layers", "3", "--decoder-attention-heads", "4"]
        save_dir = tmp_path / f"runs/bible-de-en/{name}/1/checkpoints"
        train_translation(command, data, save_dir, "--arch", arch, *sizes, "--max-epoch", "1")
    monkeypatch.setenv("GPAM_OUT", str(tmp_path))
    notebook = nbformat.read(PAGE.with_name("look-inside.ipynb"), 4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("number = 718", "number = 7")
    nbclient.NotebookClient(notebook, timeout=300).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not [output for output in outputs if output.get("name") == "stderr"]


def test_the_notebook_is_committed_with_its_pictures_and_no_path_of_a_machine():
    path = PAGE.with_name("look-inside.ipynb")
    text = path.read_text(encoding="utf-8")
    assert text.count('"image/png"') == 3
    assert len(text.encode()) < 300_000
    assert not re.search(r"(?<![\w.])/(?:home|root|tmp|work|usr)/", text)
