"""Multi30k is prepared from the tokenised files, from the raw ones, compressed or not, or from both."""

import gzip

import archives as made
import pytest

from fairseq_gpam.lab.recipes import downloads, tasks
from fairseq_gpam.lab.recipes.archives import ArchiveError
from fairseq_gpam.lab.recipes.multi30k import prepare_multi30k


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The synthetic files, in folders like the published ones."""
    for name, value in made.multi30k(tmp_path).items():
        monkeypatch.setenv(name, value)
    return tmp_path / "multi30k/made/data/task1"


def prepare(archive, out):
    """Prepare from the local files and return the lines of a file by its name."""
    out.mkdir()
    prepare_multi30k(downloads.local_files(tasks.load("multi30k-en-de").data, archive), out)
    return lambda name: (out / name).read_text(encoding="utf-8").splitlines()


def test_tokenised_text_is_trained_on_and_raw_text_is_the_reference(published, tmp_path):
    lines = prepare(published, tmp_path / "out")
    assert lines("input/train.en") == (published / "tok/train.lc.norm.tok.en").read_text().splitlines()
    raw = gzip.decompress((published / "raw/test_2016_flickr.de.gz").read_bytes()).decode()
    assert lines("test.de") == raw.splitlines()
    assert len(lines("input/test.de")) == len(lines("test.en")) == 41


def test_compressed_or_not_makes_no_difference(published, tmp_path):
    for path in (published / "tok").iterdir():
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    files = [path for path in (published / "tok").iterdir()] + list((published / "raw").iterdir())
    (tmp_path / "compressed").mkdir()
    prepare_multi30k(files, tmp_path / "compressed")
    text = (tmp_path / "compressed/input/valid.de").read_bytes()
    assert text == gzip.decompress((published / "tok/val.lc.norm.tok.de.gz").read_bytes())


def test_raw_text_alone_is_lower_cased_and_tokenised(published, tmp_path):
    lines = prepare(published / "raw", tmp_path / "out")
    reference, tokenised = lines("test.en"), lines("input/test.en")
    assert tokenised != reference
    # The normaliser moves a full stop before the closing quotation mark.
    assert all(line == line.lower() and line.endswith(". &quot;") for line in tokenised)


def test_tokenised_text_alone_is_detokenised_to_be_the_reference(published, tmp_path, capsys):
    lines = prepare(published / "tok", tmp_path / "out")
    assert "the raw text is missing; detokenising" in capsys.readouterr().out
    assert all(line.endswith(".") and not line.endswith(" .") for line in lines("test.en"))


def test_missing_and_changed_files_are_named(published, tmp_path):
    (published / "raw/train.en.gz").unlink()
    with pytest.raises(ArchiveError, match=r"needs train, val and test_2016_flickr .* found: .*train\.de"):
        prepare(published / "raw", tmp_path / "out")
    (published / "raw/train.de.gz").write_bytes(gzip.compress(b"changed"))
    with pytest.raises(downloads.DownloadError, match=r"train\.de\.gz has sha256 .*, expected"):
        prepare(published / "raw", tmp_path / "other")
