"""Text becomes tokens and subwords and comes back as text."""

import pytest

from fairseq_gpam.lab.recipes import subwords


@pytest.mark.parametrize("kind", ["sentencepiece", "subword-nmt"])
def test_subwords_are_reversible_and_deterministic(tmp_path, kind):
    lines = [f"word{n} and other{n % 7} things" for n in range(200)]
    models = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        for split in subwords.SPLITS:
            subwords.write_lines(folder / f"{split}.txt", lines)
        subwords.encode_splits(folder, folder / "subword", ["txt"], kind, 60, workers=2 if name == "b" else 1)
        models.append(
            (folder / {"sentencepiece": "subword/spm.vocab", "subword-nmt": "subword/codes"}[kind]).read_bytes()
        )
        encoded = subwords.read_lines(folder / "subword/test.txt")
        if kind == "sentencepiece":
            assert [line.replace(" ", "").replace("▁", " ").strip() for line in encoded] == lines
        else:
            assert [line.replace("@@ ", "") for line in encoded] == lines
    assert models[0] == models[1]


def test_moses_tokenisation_and_back():
    tokenize = subwords.MosesTokenize("en")
    tokenised = tokenize('The cat\'s well-known mat, "at last".')
    assert tokenised == "The cat &apos;s well-known mat , &quot; at last &quot; ."
    assert subwords.detokenize([tokenised], "en") == ['The cat\'s well-known mat, "at last".']
    assert subwords.MosesTokenize("de", dashes=True)("Café-Liebhaber.") == "Café @-@ Liebhaber ."
    assert subwords.detokenize(["Café @-@ Liebhaber ."], "de") == ["Café-Liebhaber."]


def test_compounds_are_split_at_hyphens_inside_words():
    assert subwords.split_compounds("a well-known - mat-") == "a well ##AT##-##AT## known - mat-"


@pytest.mark.parametrize(
    ("source", "target", "ratio", "kept"),
    [
        *((1, 1, 1.5, True), (2, 3, 1.5, True), (2, 4, 1.5, False), (0, 1, 1.5, False), (175, 170, 1.5, True)),
        *((176, 170, 1.5, False), (4, 10, 2.5, True), (3, 10, 2.5, False), (31, 80, 2.5, False)),
    ],
)
def test_lengths(source, target, ratio, kept):
    for pair in (("a " * source, "b " * target), ("a " * target, "b " * source)):
        assert subwords.keep_lengths(*pair, 175, ratio) is kept


def test_lines_end_at_line_feeds_only(tmp_path):
    (tmp_path / "text").write_text("one\u2028still\r one\ntwo\x85\n", encoding="utf-8", newline="\n")
    assert list(subwords.read_lines(tmp_path / "text")) == ["one\u2028still\r one", "two\x85"]


@pytest.mark.parametrize("content", [b"ab\n\nc\n", b"ab\n\nc"])
def test_every_byte_is_a_token(content):
    lines = subwords.bytes_as_tokens(content).splitlines()
    assert lines == ["97 98", "", "99"]
    tokens = sum(len(line.split()) + 1 for line in lines)
    assert tokens == len(content) + (not content.endswith(b"\n"))


@pytest.mark.slow
def test_normalisation_replaces_punctuation_and_control_characters():
    tokenize = subwords.MosesTokenize("en", normalize=True)
    assert tokenize("a\u200bb “c”") == "a b &quot; c &quot;"
