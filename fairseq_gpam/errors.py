"""The one boundary between errors and the user: a sentence for what a user can mend, a traceback for a bug.

What a user can cause ends with one sentence on standard error and status 2. That is every error that this package
raises itself, because its messages say what to do, every OSError (files, folders, a full disk), a lack of memory and a
missing library of an extra.
Anything else is a bug of this package: its traceback is shown, with status 1.
"""

import contextlib
import errno
import importlib.util
import io
import linecache
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
USER, BUG = 2, 1
EXTRAS = {
    "fairseq": ("msgspec", "sacrebleu", "sentencepiece"),
    "analysis": ("jinja2", "matplotlib", "pandas", "tabulate"),
    "experiments": ("scipy", "snakemake", "statsmodels"),
    "recipes": ("sacremoses", "subword_nmt"),
}
"""The modules that come with an extra of this package, besides the engine."""


class InputError(ValueError):
    """What a user gave cannot be used; the message names it and says what is allowed."""


class Ended(SystemExit):
    """The end of a command whose message has been printed."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.code = status


@contextlib.contextmanager
def boundary() -> Iterator[None]:
    """Turns every exception into a message on standard error and a status: raises Ended."""
    # A character that a stream cannot show is written as its code instead of failing.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except SystemExit as end:
        if not isinstance(end.code, str):
            raise
        _end(end.code, USER, end)
    except KeyboardInterrupt as error:
        _end("interrupted", 128 + signal.SIGINT, error)
    except BrokenPipeError as error:
        # The reader of the output, such as `head`, has ended; nothing more may be written at the interpreter's exit.
        _silence_stdout()
        raise Ended("", 128 + signal.SIGPIPE) from error
    except Exception as error:
        sentence = describe(error)
        if sentence is not None:
            _end(sentence, USER, error)
        traceback.print_exc()
        _end("This is a bug of fairseq_gpam; please report it with the lines above.", BUG, error)


def _end(message: str, status: int, cause: BaseException) -> None:
    if isinstance(cause, OSError) and cause.filename is None:
        # On a full disk, what is left in the buffer would fail again at the interpreter's exit.
        _silence_stdout()
    print(message, file=sys.stderr, flush=True)
    raise Ended(message, status) from cause


def _silence_stdout() -> None:
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def describe(error: BaseException) -> str | None:
    """Returns the sentence for an error that a user can mend, None for a bug."""
    if isinstance(error, OSError):
        return describe_os_error(error)
    if isinstance(error, ModuleNotFoundError):
        missing = (error.name or "").partition(".")[0]
        extra = next((extra for extra, modules in EXTRAS.items() if missing in modules), None)
        return f"{missing} is not installed: pip install 'fairseq-gpam[{extra}]'" if extra else None
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"there is not enough memory{f': {error}' if str(error) else ''}"
    return str(error) if _raised_by_this_package(error) else None


def require(*modules: str) -> None:
    """Raises ModuleNotFoundError before any work if one of an extra's modules is not installed."""
    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def describe_os_error(error: OSError) -> str:
    """Returns the file, what is wrong and, for a full disk, that nothing is left."""
    reason = error.strerror or str(error)
    if error.errno == errno.ENOENT:
        reason = "no such file or folder"
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    return f"{' → '.join(names)}: {reason}" if names else reason


def _raised_by_this_package(error: BaseException) -> bool:
    """Returns whether a `raise` of this package raised the error: such messages are written for users.

    A class of this package is proof enough; of other classes, the innermost line must be a `raise`.
    """
    if type(error).__module__.partition(".")[0] == PACKAGE.name:
        return True
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or frames[-1].lineno is None or PACKAGE not in Path(frames[-1].filename).resolve().parents:
        return False
    return linecache.getline(frames[-1].filename, frames[-1].lineno).lstrip().startswith("raise ")


@contextlib.contextmanager
def blamed_on(given: str) -> Iterator[None]:
    """Raises InputError that names what was `given` in place of an error of another program, such as fairseq."""
    try:
        yield
    except (Exception, SystemExit) as error:
        if describe(error) is not None:
            raise
        raise InputError(f"{given}: {type(error).__name__}: {' '.join(str(error).split())}") from error


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Names the file in an OSError that names none, as that of a full disk does."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def check_folder(path: Path) -> None:
    """Finds out, before any work and without creating it, whether a folder of outputs can be written.

    Raises OSError, which the boundary describes.
    """
    existing = next(folder for folder in (path, *path.absolute().parents) if os.path.lexists(folder))
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(existing))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))


def read_lines(path: Path) -> Iterator[str]:
    """Yields the lines of a text, split at line feeds only, which are kept; InputError if one is not UTF-8."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                byte = f"byte 0x{line[error.start]:02x}"
                raise InputError(f"{path}, line {number}: {byte} is not UTF-8 text") from error
            yield text


def read_text(path: Path) -> str:
    """Returns a text file's content; raises InputError with the line if it is not UTF-8."""
    return "".join(read_lines(path))
