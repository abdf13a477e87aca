"""Reads published archives; a broken or malicious one raises an error of one sentence.

Only requested members are read, under their base names, so none can escape its folder. The unpacked size is limited.
"""

import codecs
import contextlib
import gzip
import io
import lzma
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

LARGEST_ON_DISK = 16 << 30
"""The largest total size of the members of one archive, in bytes."""
LARGEST_IN_MEMORY = 1 << 30
"""The largest size, in bytes, of a member that is read into memory, twice that of WikiText-103's training set."""
_BLOCK = 1 << 20


class ArchiveError(ValueError):
    """An archive is not the published one: it is broken, too large, or lacks a file."""


@contextlib.contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turns every error of reading `path` into an ArchiveError that names it and what was expected."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ArchiveError(f"{path} holds text that is not UTF-8: {error}; expected {expected}") from error
    except NotImplementedError as error:
        raise ArchiveError(f"{path} cannot be read: {error}; expected {expected}") from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile) as error:
        size = path.stat().st_size
        reason = str(error).partition("\n")[0].rstrip(":")
        with path.open("rb") as file:
            html = _is_html(file.read(_BLOCK))
        kind = "empty" if not size else "an HTML page" if html else "truncated or no archive of its kind"
        raise ArchiveError(
            f"{path} cannot be read: it is {kind} ({size:,} bytes; {reason}); expected {expected}"
        ) from error


def _is_html(start: bytes) -> bool:
    return start.lstrip().lower().startswith((b"<!doctype html", b"<html"))


def check_text(file: IO[bytes], name: str, complete: bool = True) -> None:
    """Raises ArchiveError if a file is empty, not UTF-8 text, HTML or zeros, or, if `complete`, ends within a line."""
    if problem := _problem(file, complete):
        raise ArchiveError(f"{name} {problem}; expected text in UTF-8")


def _problem(file: IO[bytes], complete: bool) -> str:
    decoder = codecs.getincrementaldecoder("utf-8")()
    blank, last = True, b""
    try:
        while block := file.read(_BLOCK):
            if not last and _is_html(block):
                return "is an HTML page"
            if not last and block.startswith(b"\0"):
                return "starts with zero bytes"
            blank = blank and not block.strip()
            last = block[-1:]
            decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "holds text that is not UTF-8"
    if blank:
        return "is empty"
    if last == b"\0":
        return "ends in zero bytes"
    if complete and last != b"\n":
        return "is truncated: its last line does not end"
    return ""


def read(source: IO[bytes] | gzip.GzipFile, name: str) -> bytes:
    """Returns a member's bytes; raises ArchiveError if they are more than LARGEST_IN_MEMORY."""
    content = source.read(LARGEST_IN_MEMORY + 1)
    if len(content) > LARGEST_IN_MEMORY:
        raise ArchiveError(f"{name} unpacks to more than {LARGEST_IN_MEMORY:,} bytes")
    return content


def lines_of(source: IO[bytes] | gzip.GzipFile, name: str) -> list[str]:
    """Returns a member's lines; raises ArchiveError if they are no complete text or more than LARGEST_IN_MEMORY."""
    content = read(source, name)
    check_text(io.BytesIO(content), name)
    return content.decode("utf-8").removesuffix("\n").split("\n")


def read_lines(path: Path) -> list[str]:
    """Returns the lines of a file, decompressed if its suffix is that of gzip; raises ArchiveError as `lines_of`."""
    compressed = path.suffix == ".gz"
    with (
        reading(path, "a gzip file of text" if compressed else "text in UTF-8"),
        gzip.open(path) if compressed else path.open("rb") as file,
    ):
        return lines_of(file, str(path))


def tar_members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields name and content of each regular file of a tar archive, to be read within `reading`.

    Raises ArchiveError if the files are larger than LARGEST_ON_DISK in total.
    """
    total = 0
    with tarfile.open(path) as archive:
        for member in archive:
            total += member.size
            if total > LARGEST_ON_DISK:
                raise ArchiveError(f"{path} unpacks to more than {LARGEST_ON_DISK:,} bytes")
            content = archive.extractfile(member) if member.isreg() else None
            if content is not None:
                yield member.name, content


def unpack(paths: Iterable[Path], names: Iterable[str], folder: Path) -> dict[str, Path]:
    """Extracts the texts of these base names from tar archives; returns their paths by name.

    Raises ArchiveError with the names that no archive contains, or if one of them is not text.
    """
    paths, missing = list(paths), set(names)
    extracted: dict[str, Path] = {}
    for path in paths:
        with reading(path, "a tar archive"):
            for member, content in tar_members(path):
                name = Path(member).name
                if name in missing:
                    extracted[name] = folder / name
                    with extracted[name].open("wb") as out:
                        shutil.copyfileobj(content, out)
                    with extracted[name].open("rb") as text:
                        check_text(text, f"{path}: {member}", complete=False)
                    missing.remove(name)
    if missing:
        raise ArchiveError(f"missing from {', '.join(map(str, paths))}: {', '.join(sorted(missing))}")
    return extracted


@contextlib.contextmanager
def zip_member(path: Path, name: str) -> Iterator[IO[bytes]]:
    """Opens the member of a zip archive that has this base name, in any folder.

    Raises ArchiveError if there is none or the archive cannot be read.
    """
    with reading(path, "a zip archive"), zipfile.ZipFile(path) as archive:
        member = next((known for known in archive.infolist() if f"/{known.filename}".endswith(f"/{name}")), None)
        if member is None:
            raise ArchiveError(f"missing from {path}: {name}")
        if member.file_size > LARGEST_ON_DISK:
            raise ArchiveError(f"{path}: {name} unpacks to more than {LARGEST_ON_DISK:,} bytes")
        with archive.open(member) as content:
            yield content
