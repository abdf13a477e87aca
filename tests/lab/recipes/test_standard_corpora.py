"""The standard corpora are cleaned and split as fairseq's recipes do, on synthetic archives."""

import zipfile

import pytest
from archives import tar

from fairseq_gpam.lab.recipes import standard_corpora as standard


def iwslt(folder, training):
    files = {}
    for side, language in enumerate(standard.LANGUAGES):
        tags = ["<url>u</url>", "<keywords>k</keywords>", "<talkid>1</talkid>", f"<title>Title {language}</title>"]
        lines = [*tags, *(pair[side] for pair in training)]
        files[f"de-en/train.tags.de-en.{language}"] = "".join(f"{line}\n" for line in lines)
        for test in standard.IWSLT14_TESTS:
            files[f"de-en/{test}.de-en.{language}.xml"] = f'<doc>\n<seg id="1"> It’s {test} </seg>\n</doc>\n'
    return tar(folder / "de-en.tgz", files)


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_iwslt14(tmp_path):
    training = [(f"Wort {n} eins.", f"Word {n}, one.") for n in range(60)]
    training[5] = ("Kurz.", "This one is much too long for it.")
    training[6] = ("", "Empty.")
    archive = iwslt(tmp_path, training)
    standard.prepare_iwslt14([archive], tmp_path)
    train, valid = (lines_of(tmp_path / f"input/{split}.en") for split in ("train", "valid"))
    kept = ["title en", *(f"word {n} , one ." for n in range(60) if n not in (5, 6))]
    assert valid == [line for number, line in enumerate(kept, start=1) if number % 23 == 0]
    assert train == [line for number, line in enumerate(kept, start=1) if number % 23]
    assert lines_of(tmp_path / "test.en") == [f"It’s {test}" for test in standard.IWSLT14_TESTS]
    assert lines_of(tmp_path / "input/test.en")[0].startswith("it &apos;s iwslt14.ted.dev2010")

    plain = tmp_path / "plain"
    plain.mkdir()
    standard.prepare_iwslt14([archive], plain, moses=False)
    assert lines_of(plain / "input/train.en")[1] == "word 0, one."
    assert len(lines_of(plain / "input/train.de")) == len(train)


def test_a_file_missing_from_an_archive_is_named(tmp_path):
    archive = tar(tmp_path / "de-en.tgz", {"de-en/train.tags.de-en.de": "a\n"})
    with pytest.raises(
        standard.ArchiveError, match=r"missing from .*de-en\.tgz: IWSLT14\.TED\.dev2010.*train\.tags\.de-en\.en"
    ):
        standard.prepare_iwslt14([archive], tmp_path)


def test_sides_of_different_length_are_refused(tmp_path):
    files = {}
    for side, language in enumerate(standard.LANGUAGES):
        for corpus in standard.WMT14_TRAINING:
            files[f"training/{corpus}.{language}"] = "a b\n" * (3 + side)
    files["newstest2014-deen-ref.de.sgm"] = '<seg id="1">x</seg>\n'
    files["newstest2014-deen-src.en.sgm"] = '<seg id="1">y</seg>\n'
    with pytest.raises(standard.ArchiveError, match=r"europarl-v7\.de-en: 3 German lines, but 4 English ones"):
        standard.prepare_wmt14([tar(tmp_path / "all.tgz", files)], tmp_path)


def test_wmt14_is_cleaned_after_subwords(tmp_path):
    for split in ("train", "valid"):
        (tmp_path / f"{split}.de").write_text("a b c\na\n\n" + "a " * 251 + "\n")
        (tmp_path / f"{split}.en").write_text("a b\na b\na\n" + "a " * 251 + "\n")
    standard.clean_wmt14(tmp_path)
    assert (tmp_path / "train.de").read_text() == "a b c\n"
    assert (tmp_path / "valid.en").read_text() == "a b\n"


def test_enwik8_is_cut_by_bytes(tmp_path):
    content = "aé\nbc\n".encode() * 10
    with zipfile.ZipFile(tmp_path / "enwik8.zip", "w") as archive:
        archive.writestr("enwik8", content)
    standard.prepare_enwik8([tmp_path / "enwik8.zip"], tmp_path, held_out=9)
    parts = [(tmp_path / f"{split}.txt").read_bytes() for split in ("train", "valid", "test")]
    assert b"".join(parts) == content
    assert [len(part) for part in parts] == [len(content) - 18, 9, 9]
    assert lines_of(tmp_path / "subword/test.txt") == ["99", "97 195 169", "98 99"]
    with pytest.raises(standard.ArchiveError, match="too few"):
        standard.prepare_enwik8([tmp_path / "enwik8.zip"], tmp_path, held_out=50)


def test_words_are_taken_as_they_are(tmp_path):
    with zipfile.ZipFile(tmp_path / "wiki.zip", "w") as archive:
        for split in ("train", "valid", "test"):
            archive.writestr(f"wikitext-103/wiki.{split}.tokens", f" \n = {split} = \n <unk> @-@ word \n")
    standard.prepare_wikitext103([tmp_path / "wiki.zip"], tmp_path)
    assert (tmp_path / "test.txt").read_text() == " \n = test = \n <unk> @-@ word \n"
    with pytest.raises(standard.ArchiveError, match=r"missing: ptb\.train\.txt"):
        standard.prepare_ptb([tmp_path / "test.txt"], tmp_path)


@pytest.mark.slow
def test_wmt16_is_taken_as_it_was_preprocessed(tmp_path):
    files = {}
    for language in standard.LANGUAGES:
        for name in ("train.tok.clean", "newstest2013.tok", "newstest2014.tok"):
            files[f"{name}.bpe.32000.{language}"] = f"{name} lo@@ wer @-@ case\n"
    tests = {
        "newstest2014-deen-ref.de.sgm": '<seg id="1">Raw de.</seg>\n',
        "newstest2014-deen-src.en.sgm": '<seg id="1">Raw en.</seg>\n',
    }
    archives = [tar(tmp_path / "wmt16.tgz", files), tar(tmp_path / "test.tgz", tests)]
    standard.prepare_wmt16(archives, tmp_path)
    assert lines_of(tmp_path / "subword/valid.de") == ["newstest2013.tok lo@@ wer @-@ case"]
    assert lines_of(tmp_path / "input/test.de") == ["newstest2014.tok lower @-@ case"]
    assert lines_of(tmp_path / "test.de") == ["Raw de."]
    assert sorted(path.name for path in (tmp_path / "subword").iterdir()) == sorted(
        f"{split}.{language}" for split in ("train", "valid", "test") for language in standard.LANGUAGES
    )
