"""Files are read into typed structures; every fault is one sentence with file, key, value and what is allowed."""

import copy
import json
from typing import Annotated, Literal

import hypothesis.strategies as st
import pytest
from hypothesis import given
from msgspec import Meta, field

from fairseq_gpam.lab import schema


class Leaf(schema.Strict):
    name: str
    size: Annotated[int, Meta(ge=0, le=9)] = 1
    steps: tuple[int, float] = (1, 0.5)

    def __post_init__(self):
        if self.name == "refused":
            raise ValueError("name is refused here")


class Tree(schema.Strict):
    text: str
    number: float
    whole: int
    flag: bool
    choice: Literal["red", "green"]
    rates: Annotated[list[float], Meta(min_length=1)]
    leaf: Leaf
    leaves: dict[str, Leaf]
    either: str | Leaf = ""
    maybe: int | None = None
    dashed: int = field(default=0, name="with-dash")


RIGHT = {
    "text": "a",
    "number": 1,
    "whole": 2,
    "flag": True,
    "choice": "red",
    "rates": [1, 2.5],
    "leaf": {"name": "x"},
    "leaves": {"a b": {"name": "y", "size": 3, "steps": [1, 2]}},
    "either": {"name": "z"},
    "maybe": None,
    "with-dash": 4,
}
PLACES = [
    *((key,) for key in RIGHT),
    *(("rates", 0), ("leaf", "name"), ("leaves", "a b"), ("either", "name")),
    *(("leaves", "a b", "size"), ("leaves", "a b", "steps"), ("leaves", "a b", "steps", 1)),
]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def written(place):
    parts = [
        f"[{part}]" if isinstance(part, int) else f".{part if ' ' not in part else json.dumps(part)}" for part in place
    ]
    return "".join(parts).removeprefix(".")


def test_what_fits_is_read(tmp_path):
    file = tmp_path / "right.json"
    file.write_text(json.dumps(RIGHT))
    tree = schema.read_json(file, Tree)
    assert tree.leaves["a b"] == Leaf(name="y", size=3, steps=(1, 2.0))
    assert tree.either == Leaf(name="z") and tree.dashed == 4


@given(st.sampled_from(PLACES), VALUES)
def test_a_wrong_value_anywhere_is_one_sentence_with_its_key(place, value):
    values = copy.deepcopy(RIGHT)
    *outer, last = place
    inside = values
    for part in outer:
        inside = inside[part]
    inside[last] = value
    try:
        schema.check(values, Tree, "FILE")
    except schema.SchemaError as error:
        said = str(error)
        assert said.startswith("FILE: ") and written(place) in said, said
        assert len(said.splitlines()) == 1 and " - at" not in said and "Expected" not in said
        # A fault of the value itself names the value and what is allowed; one inside it names the key inside.
        assert "allowed: " in said or "is refused here" in said
        if not isinstance(value, (dict, list)):
            assert schema.show(value) in said


@pytest.mark.parametrize("place", PLACES[:7])
def test_a_missing_key_is_named(place):
    values = {key: value for key, value in RIGHT.items() if key != place[0]}
    with pytest.raises(schema.SchemaError, match=f"{place[0]} is missing; allowed: "):
        schema.check(values, Tree, "FILE")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rate": [1]}, "unknown key rate; allowed: text, number, .*nearest: rates"),
        ({"leaf": {"name": "x", "sise": 2}}, r"unknown key leaf\.sise; allowed: name, size, steps \(nearest: size"),
        ({"choice": "gren"}, r'choice is "gren"; allowed: red, green \(nearest: green\)'),
        ({"leaf": {"name": "x", "size": 12}}, r"leaf\.size is 12; allowed: a whole number from 0 to 9"),
        ({"leaf": {"name": "refused"}}, "leaf: name is refused here"),
        ({"rates": []}, r"rates is \[\]; allowed: a list of numbers, at least 1 long"),
        ({"flag": 1}, "flag is 1; allowed: true or false"),
        ({"whole": True}, "whole is true; allowed: a whole number"),
        ({"either": 3}, "either is 3; allowed: text or a table"),
        ({"maybe": "1"}, 'maybe is "1"; allowed: a whole number$'),
    ],
)
def test_messages_say_what_is_allowed_in_words(change, said):
    with pytest.raises(schema.SchemaError, match=said):
        schema.check({**RIGHT, **change}, Tree, "FILE")


@pytest.mark.parametrize("whole", [None, [], 1, "text", [1]])
def test_a_file_of_another_shape_is_refused(whole):
    with pytest.raises(schema.SchemaError, match=r"FILE: it is .*; allowed: a table"):
        schema.check(whole, Tree, "FILE")


@pytest.mark.parametrize("read", [schema.read_json, schema.read_json_lines, schema.read_toml])
@pytest.mark.parametrize("data", [b"{", b"\xff", b"a = [", b"\xef\xbb\xbf{}", b"[" * 100000, b"9" * 5000, b"\x00"])
def test_what_cannot_be_parsed_names_the_file(tmp_path, read, data):
    file = tmp_path / "broken"
    file.write_bytes(data)
    with pytest.raises(schema.SchemaError) as caught:
        read(file, Leaf)
    assert str(file) in str(caught.value) and len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("read", [schema.read_json, schema.read_json_lines, schema.read_toml])
def test_what_is_no_readable_file_is_named(tmp_path, read):
    with pytest.raises(schema.SchemaError, match=r"missing: no such file"):
        read(tmp_path / "missing", Leaf)
    with pytest.raises(schema.SchemaError, match=f"{tmp_path}: cannot be read: Is a directory"):
        read(tmp_path, Leaf)


def test_a_wrong_line_is_numbered(tmp_path):
    file = tmp_path / "lines.jsonl"
    file.write_text('{"name": "a"}\n\n{"name": "b\u2028"}\n')
    assert [leaf.name for leaf in schema.read_json_lines(file, Leaf)] == ["a", "b\u2028"]
    file.write_text('{"name": "a"}\n{"name": 3}\n')
    with pytest.raises(schema.SchemaError, match=r"lines\.jsonl, line 2: name is 3; allowed: text"):
        schema.read_json_lines(file, Leaf)
