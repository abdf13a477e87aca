"""The one loader of checkpoints: nothing in a file runs, and a damaged file is refused or loads as it was."""

import argparse
import ast
import random
import re
from collections import OrderedDict
from pathlib import Path

import fairseq
import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.models import ARCH_CONFIG_REGISTRY, MODEL_DATACLASS_REGISTRY
from foreign import Foreign
from omegaconf import OmegaConf
from quick import EXAMPLES

from fairseq_gpam.checkpoints import EVALUATED, CheckpointError, check_settings, is_literal, load


def same(state, other):
    return state.keys() == other.keys() and all(
        torch.equal(state[name]["weight"], other[name]["weight"]) if name == "model" else state[name] == other[name]
        for name in other
    )


CASES = 200


EVALUATORS = re.compile(r"eval|(\w+\.)?eval_(str_list|str_dict|bool)")


FORMS = [
    *("{}", "[{}]", "  {}", "(1, {})", "[1, 2] + [{}]", "{{1: {}}}", "{{{}: 1}}", "-{}", "f'{{{}}}'", "[{}][0]"),
    *("[x for x in [{}]]", "(lambda: {})()", "1 if {} else 2", "{} or 1", "[*[{}]]", "{{**{{}}, 2: {}}}"),
]


def test_every_setting_that_the_engine_evaluates_is_known():
    evaluated = set()
    for path in Path(fairseq.__path__[0]).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "examples" in path.parts or "eval" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and node.args and EVALUATORS.fullmatch(ast.unparse(node.func)):
                evaluated.add(ast.unparse(node.args[0]).rpartition(".")[2])
    assert len(evaluated) > 20
    # These are arguments of functions that evaluate them, of parsers of command lines, and lines of a data file.
    assert evaluated - {"x", "uf", "strip()"} <= EVALUATED


def test_the_defaults_of_the_engine_are_allowed():
    for model, dataclass in MODEL_DATACLASS_REGISTRY.items():
        check_settings(model, OmegaConf.structured(dataclass))
    for name, architecture in ARCH_CONFIG_REGISTRY.items():
        settings = argparse.Namespace()
        try:
            architecture(settings)
        except Exception:  # some presets read settings that only a parser gives
            continue
        check_settings(name, settings)


def code(made, marker):
    """Python that leaves the file `marker` if it is evaluated, in one of many forms."""
    action = made.choice([f"__import__('pathlib').Path({marker!r}).touch()", f"open({marker!r}, 'w')"])
    text = made.choice(FORMS).format(action)
    return made.choice([text, text, text.encode(), torch.tensor(list(text.encode()), dtype=torch.uint8).numpy()])


def nested(made, name, value):
    """Settings that hold the setting somewhere: in namespaces, dictionaries and lists."""
    settings = {name: value, "dropout": 0.1}
    for _ in range(made.randrange(3)):
        settings = made.choice([settings, argparse.Namespace(**settings)])
        settings = {made.choice(["w2v_args", "model", "nested"]): made.choice([settings, [settings]]), "seed": 1}
    return made.choice([settings, argparse.Namespace(**settings)])


@pytest.mark.parametrize("task", ["args", "cfg"])
def test_settings_that_would_run_are_refused_by_name_and_nothing_runs(tmp_path, task):
    made, marker = random.Random(1), tmp_path / "marker"
    for number in range(EXAMPLES):
        name = made.choice(sorted(EVALUATED))
        settings = nested(made, name, code(made, str(marker)))
        path = tmp_path / "made.pt"
        state = {"model": {"weight": torch.zeros(1)}, "optimizer_history": [{"num_updates": 1}], task: settings}
        torch.save(state, path)
        with pytest.raises(CheckpointError, match=rf"fairseq would run its setting {name} = ") as refusal:
            check_settings(path, load(path)[task])
        assert "\n" not in str(refusal.value), number
    assert not marker.exists()


class Hiding:
    """A dictionary that shows nothing by one of its methods, and holds a setting."""

    def __init__(self, method, name, value):
        self.parts = OrderedDict, (), {method: OrderedDict}, None, iter([(name, value)])

    def __reduce__(self):
        return self.parts


def test_settings_that_hide_others_are_refused(tmp_path):
    made, path = random.Random(4), tmp_path / "made.pt"
    for _ in range(EXAMPLES):
        name, value = made.choice(sorted(EVALUATED)), "print()"
        broken = made.choice([name + made.choice("\n\r\u2028"), made.choice("\n\x00") + name])
        hiding = Hiding(made.choice(["items", "values", "keys", "get", "__iter__"]), name, value)
        settings = made.choice([nested(made, "decoder", hiding), nested(made, broken, value)])
        state = {"model": {"weight": torch.zeros(1)}, "optimizer_history": [{"num_updates": 1}], "args": settings}
        torch.save(state, path)
        with pytest.raises(CheckpointError, match=r"could hide another|would run its setting"):
            check_settings(path, load(path)["args"])
    with pytest.raises(CheckpointError, match="its settings hold <class"):
        check_settings(path, argparse.Namespace(items=OrderedDict))


def test_the_engine_itself_refuses_to_load_it(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "made.pt"
    optimizer = {"num_updates": 1, "lr_scheduler_state": {}, "optimizer_name": "Adam"}
    model = argparse.Namespace(adaptive_softmax_cutoff=f"open({str(marker)!r}, 'w')")
    state = {"model": {}, "optimizer_history": [optimizer], "extra_state": {"train_iterator": {}}}
    torch.save({**state, "cfg": {"model": model}}, path)
    with pytest.raises(CheckpointError, match="adaptive_softmax_cutoff"):
        checkpoint_utils.load_checkpoint_to_cpu(str(path))
    # What a user's own command line puts in its place is what counts.
    checkpoint_utils.load_checkpoint_to_cpu(str(path), {"adaptive_softmax_cutoff": "[4, 8]"})
    assert not marker.exists()


def test_literals_are_allowed():
    made = random.Random(2)

    def literal(depth):
        kinds = [lambda: made.randint(-9, 9), lambda: made.random(), lambda: made.choice([None, True, "text"])]
        if depth:
            kinds += [lambda: [literal(depth - 1) for _ in range(made.randrange(3))]]
            kinds += [lambda: tuple(literal(depth - 1) for _ in range(made.randrange(3)))]
            kinds += [lambda: {made.randint(0, 3): literal(depth - 1)}]
        return made.choice(kinds)()

    for _ in range(EXAMPLES):
        value = literal(3)
        assert is_literal(repr(value)), value
    assert is_literal("[(512, 10, 5)] + [(512, 3, 2)] * 4")
    assert is_literal("${model.modalities.conv_feature_layers}") and not is_literal("${model.other}")
    assert not is_literal("(" * 5000) and not is_literal("-" * 9999 + "1") and not is_literal("1\0")


def test_a_foreign_object_is_refused_without_advice_to_switch_safety_off(tmp_path):
    path = tmp_path / "made.pt"
    for zipped in (True, False):
        torch.save({"model": Foreign(tmp_path / "marker")}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match=r"is refused: it holds pathlib\.Path\.touch|is refused") as refusal:
            load(path)
        assert "weights_only" not in str(refusal.value) and "add_safe_globals" not in str(refusal.value)
    assert not (tmp_path / "marker").exists()


def test_a_checkpoint_of_older_pytorch_loads(tmp_path):
    state = {"cfg": {}, "model": {"weight": torch.ones(3)}, "optimizer_history": []}
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load(tmp_path / "old.pt")["model"]["weight"], torch.ones(3))


@pytest.mark.slow
def test_damaged_files_are_refused_in_one_sentence_or_load_as_they_were(tmp_path):
    path, made = tmp_path / "made.pt", random.Random(3)
    state = {"cfg": {"model": {"arch": "none"}}, "model": {"weight": torch.arange(300.0)}}
    torch.save({**state, "optimizer_history": [{"num_updates": 7}]}, path)
    intact, expected = path.read_bytes(), load(path)
    expected = {**expected, "model": {"weight": expected["model"]["weight"].clone()}}
    loaded = 0
    for _ in range(CASES):
        content = bytearray(intact)
        kind = made.choice(["flip", "flip", "flip", "cut", "zeros", "text", "insert", "head"])
        place = made.randrange(len(content))
        if kind == "flip":
            content[place] ^= 1 << made.randrange(8)
        elif kind == "cut":
            del content[place:]
        elif kind == "zeros":
            content[place : place + 50] = bytes(min(50, len(content) - place))
        elif kind == "text":
            content = bytearray(made.choice(["", "{", "no checkpoint\n" * place, "ä"]).encode())
        elif kind == "insert":
            content[place:place] = made.randbytes(3)
        else:
            del content[: place + 1]
        damaged = tmp_path / "damaged.pt"
        damaged.unlink(missing_ok=True)  # the file before may still be mapped
        damaged.write_bytes(content)
        try:
            state = load(damaged)
        except CheckpointError as error:
            assert str(error).startswith(str(damaged)) and "\n" not in str(error)
        else:
            loaded += 1
            assert same(state, expected), (kind, place)
    assert loaded < CASES / 4


@pytest.mark.slow
@pytest.mark.parametrize("name, reason", [("missing.pt", "no such file"), (".", "a folder, not a checkpoint")])
def test_what_is_no_file_is_said(tmp_path, name, reason):
    with pytest.raises(CheckpointError, match=reason):
        load(tmp_path / name)
