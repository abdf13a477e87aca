"""Reads published archives; a broken or hostile one ends in an error of one sentence.

Only requested members are read, under their base names, so none can escape its folder. The unpacked size is bounded.
"""

from __future__ import annotations

import contextlib
import gzip
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Protocol

LARGEST_ON_DISK = 16 << 30
"""The largest total size of the members of one archive, in bytes."""
LARGEST_IN_MEMORY = 1 << 30
"""Bytes that a member may have that is read whole; WikiText-103's training set has half of it."""
_BLOCK = 1 << 20


class ArchiveError(ValueError):
    """An archive is not what was published: broken, too large, or without a file that it should hold."""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns every error of reading `path` into an ArchiveError that names it."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ArchiveError(f"{path} holds text that is not UTF-8: {error}") from error
    except NotImplementedError as error:
        raise ArchiveError(f"{path} cannot be read: {error}") from error
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, gzip.BadGzipFile) as error:
        size = path.stat().st_size
        reason = str(error).partition("\n")[0].rstrip(":")
        kind = "empty" if not size else "an HTML page" if _is_html(path) else "truncated or no archive of its kind"
        raise ArchiveError(f"{path} cannot be read: it is {kind} ({size:,} bytes; {reason})") from error


def _is_html(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(200).lstrip().lower()
    return start.startswith((b"<!doctype html", b"<html"))


class Readable(Protocol):
    """A source of bytes: a member of an archive, or a compressed file."""

    def read(self, size: int, /) -> bytes: ...


def copy(source: Readable, target: IO[bytes], name: str) -> None:
    """Copies a member, block by block.

    Raises ArchiveError if it is larger than any published one.
    """
    size = 0
    while block := source.read(_BLOCK):
        size += len(block)
        if size > LARGEST_ON_DISK:
            raise ArchiveError(f"{name} unpacks to more than {LARGEST_ON_DISK:,} bytes")
        target.write(block)


def read(source: Readable, name: str) -> bytes:
    """Returns a member's bytes.

    Raises ArchiveError if there are more than fit in memory.
    """
    content = source.read(LARGEST_IN_MEMORY + 1)
    if len(content) > LARGEST_IN_MEMORY:
        raise ArchiveError(f"{name} unpacks to more than {LARGEST_IN_MEMORY:,} bytes")
    return content


def tar_members(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Yields name and content of each regular file of a tar archive, to be read within `reading(path)`.

    Raises ArchiveError if it is larger than any published one.
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
    """Extracts the files of these base names from tar archives; returns their paths by name.

    Raises ArchiveError with the names that no archive holds.
    """
    paths, missing = list(paths), set(names)
    found: dict[str, Path] = {}
    for path in paths:
        with reading(path):
            for member, content in tar_members(path):
                name = Path(member).name
                if name in missing:
                    found[name] = folder / name
                    with found[name].open("wb") as out:
                        copy(content, out, f"{path}: {member}")
                    missing.remove(name)
    if missing:
        raise ArchiveError(f"missing from {', '.join(map(str, paths))}: {', '.join(sorted(missing))}")
    return found


@contextlib.contextmanager
def zip_member(path: Path, name: str) -> Iterator[IO[bytes]]:
    """Opens the member of a zip archive that has this name, in whatever folder.

    Raises ArchiveError if there is none or the archive cannot be read.
    """
    with reading(path), zipfile.ZipFile(path) as archive:
        member = next((known for known in archive.namelist() if known == name or known.endswith(f"/{name}")), None)
        if member is None:
            raise ArchiveError(f"missing from {path}: {name}")
        with archive.open(member) as content:
            yield content
