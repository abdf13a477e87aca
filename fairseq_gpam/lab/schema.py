"""Reads TOML, JSON and JSON lines into typed structures; what is wrong in a file becomes one sentence.

The sentence names the file (and the line), the key, its value and what is allowed:

    class Table(schema.Strict, frozen=True):
        rates: Annotated[list[float], Meta(min_length=1)]
        kind: Literal["words", "bytes"] = "words"

    schema.read_toml(Path("table.toml"), Table)
    # SchemaError: table.toml: kind is "word"; allowed: words, bytes (nearest: words)

What a type cannot say belongs in a structure's `__post_init__`, which raises `ValueError`. Types are read in words; a
constrained one is described by its `Meta(description=…)` where the constraints alone would not be understood.
"""

import difflib
import json
import re
import tomllib
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import msgspec

T = TypeVar("T")
BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
SHOWN = 80
"""A longer value is cut in a message."""
WORDS: dict[Any, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    dict: "a table",
    list: "a list",
    tuple: "a list",
    Any: "anything",
}
PLURALS = {"text": "texts", "a whole number": "whole numbers", "a number": "numbers", "a table": "tables"}


class SchemaError(ValueError):
    """A file is wrong; the message names the file, the line if it has one, the key, the value and what is allowed."""


class Strict(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A structure that refuses unknown keys; what inherits from it says `frozen=True` too."""


def read_toml(path: Path, kind: type[T]) -> T:
    """Returns the contents of a TOML file; raises `SchemaError` if it is missing, not TOML, or does not fit `kind`."""
    try:
        values = tomllib.loads(_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise SchemaError(f"{path}: not TOML: {_reason(error)}") from error
    return check(values, kind, str(path))


def read_json(path: Path, kind: type[T]) -> T:
    """Returns the contents of a JSON file; raises `SchemaError` if it is missing, not JSON, or does not fit `kind`."""
    return from_json(_text(path), kind, str(path))


def read_json_lines(path: Path, kind: type[T]) -> list[T]:
    """Returns the values of a file with one JSON value a line; raises `SchemaError` with the file and the line."""
    lines = enumerate(_text(path).split("\n"), start=1)
    return [from_json(line, kind, f"{path}, line {number}") for number, line in lines if line.strip()]


def from_json(text: str, kind: type[T], where: str) -> T:
    """Returns the value of a JSON text that comes from `where`, in which NaN and Infinity are numbers."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SchemaError(f"{where}: not JSON: {_reason(error)}") from error
    return check(value, kind, where)


def check(value: Any, kind: type[T], where: str) -> T:
    """Returns a value that was read from `where` as `kind`; raises `SchemaError` if it does not fit."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise SchemaError(f"{where}: {explain(value, kind, error)}") from error


def explain(value: Any, kind: Any, error: Exception, outer: str = "") -> str:
    """Returns what is wrong with a value that msgspec refused, and with which key of it."""
    for child, inner, name in _children(value, kind):
        if cause := _refusal(child, inner):
            return explain(child, inner, cause, _join(outer, name))
    constrained, kind = kind, _alternative(value, kind)
    if _is_structure(kind) and isinstance(value, dict):
        fields = {field.encode_name: field for field in msgspec.structs.fields(kind)}
        for unknown in value:
            if unknown not in fields and kind.__struct_config__.forbid_unknown_fields:
                return f"unknown key {_join(outer, unknown)}; {allowed(unknown, fields)}"
        for name, field in fields.items():
            if field.required and name not in value:
                return f"{_join(outer, name)} is missing; allowed: {words(field.type)}"
        reason = str(error.__cause__ or error)
        return f"{outer}: {reason}" if outer else reason
    if _is_map(value, kind):
        for name in value:
            if _refusal(name, get_args(kind)[0]):
                return f"{_join(outer, name)} is no allowed name; allowed: {words(get_args(kind)[0])}"
    known = choices(constrained)
    return f"{outer or 'it'} is {show(value)}; {allowed(value, known) if known else f'allowed: {words(constrained)}'}"


def words(kind: Any) -> str:
    """Returns what a type allows, in words."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _constrained(arguments[0], [meta for meta in arguments[1:] if isinstance(meta, msgspec.Meta)])
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        # A key that may be null may be left out, which is what a user of a file without null can do.
        return " or ".join(dict.fromkeys(words(inner) for inner in arguments if inner is not types.NoneType))
    if origin in (list, tuple) and arguments:
        entries = words(arguments[0])
        return f"a list of {PLURALS[entries]}" if entries in PLURALS else f"a list, each entry {entries}"
    return WORDS.get(origin or kind, "a table" if _is_structure(kind) else str(kind))


def choices(kind: Any) -> list[str]:
    """Returns the allowed texts of a type that has a choice, else none."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return [str(choice) for choice in arguments]
    if origin in (Union, types.UnionType):
        inner = [argument for argument in arguments if argument is not types.NoneType]
        return choices(inner[0]) if len(inner) == 1 else []
    return []


def show(value: Any) -> str:
    """Returns a value on one line as a message shows it, cut if it is long."""
    written = json.dumps(value, ensure_ascii=False, default=str)
    text = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in written)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def allowed(value: Any, known: Iterable[str]) -> str:
    """Returns "allowed: " and the known names, with the one that is most like a value that is none of them."""
    names = list(known)
    close = difflib.get_close_matches(value, names, n=1) if isinstance(value, str) else []
    return f"allowed: {', '.join(names)}" + (f" (nearest: {close[0]})" if close else "")


def key(name: str) -> str:
    """Returns a key as it is written in a path of keys, in quotes if it is not a bare word."""
    return name if BARE_KEY.fullmatch(name) else show(name)


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError as error:
        raise SchemaError(f"{path}: no such file") from error
    except OSError as error:
        raise SchemaError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise SchemaError(f"{path}, line {line}: not UTF-8: byte 0x{error.object[error.start]:02x}") from error


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        line = f"line {error.lineno}, " if "\n" in error.doc.strip() else ""
        return f"{error.msg}, {line}column {error.colno}"
    return str(error)


def _children(value: Any, kind: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Yields the values inside a value with their types and their keys or positions, as far as the type knows them."""
    kind = _alternative(value, kind)
    arguments = get_args(kind)
    if isinstance(value, dict) and _is_structure(kind):
        known = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
        yield from ((child, known[name], name) for name, child in value.items() if name in known)
    elif _is_map(value, kind):
        yield from ((child, arguments[1], name) for name, child in value.items())
    elif isinstance(value, list) and get_origin(kind) is tuple and Ellipsis not in arguments:
        if len(value) == len(arguments):
            yield from ((child, arguments[at], at) for at, child in enumerate(value))
    elif isinstance(value, list) and get_origin(kind) in (list, tuple) and arguments:
        yield from ((child, arguments[0], at) for at, child in enumerate(value))


def _alternative(value: Any, kind: Any) -> Any:
    """Returns the type without its constraints; of a union, the alternative that a table or a list is meant for."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _alternative(value, arguments[0])
    if origin in (Union, types.UnionType):
        inner = [_alternative(value, argument) for argument in arguments]
        shapes = [option for option in inner if _is_structure(option) or get_origin(option) is dict]
        if isinstance(value, list):
            shapes = [option for option in inner if get_origin(option) in (list, tuple)]
        return shapes[0] if shapes and isinstance(value, (dict, list)) else kind
    return kind


def _is_structure(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _is_map(value: Any, kind: Any) -> bool:
    return isinstance(value, dict) and get_origin(kind) is dict


def _refusal(value: Any, kind: Any) -> msgspec.ValidationError | None:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        return error
    return None


def _constrained(kind: Any, constraints: list[msgspec.Meta]) -> str:
    described = [meta.description for meta in constraints if meta.description]
    if described:
        return described[-1]
    text = words(kind)
    for meta in constraints:
        if meta.ge is not None:
            text += f", {meta.ge} or above" if meta.le is None else f" from {meta.ge} to {meta.le}"
        text += f" above {meta.gt}" if meta.gt is not None else ""
        text += f", at least {meta.min_length} long" if meta.min_length is not None else ""
    return text


def _join(outer: str, name: str | int) -> str:
    if isinstance(name, int):
        return f"{outer}[{name}]"
    return f"{outer}.{key(name)}" if outer else key(name)
