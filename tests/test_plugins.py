"""Mechanisms from outside the package: registered late, by an entry point, or from a file that a flag names."""

from pathlib import Path

import pytest
from tiny import BASE, OURS, TASKS, build, build_from, model_config, unlist

from fairseq_gpam import plugins
from fairseq_gpam.attention import REGISTRY
from fairseq_gpam.modules import attention_modules

EXAMPLE = Path(__file__).parents[1] / "examples" / "your-own-mechanism" / "tempered.py"
FLAGS = ("--gpam-mechanism", "tempered", "--gpam-tempered-tau", "4")
SOURCE = """
from fairseq_gpam.attention import Option, register_mechanism
from fairseq_gpam.attention.mechanisms.softmax import SoftmaxAttention


@register_mechanism
class Made(SoftmaxAttention):
    name = "{name}"
    options = (Option("{name}_size", float, 0.5, "a number of a test"),)

    def __init__(self, site, settings):
        super().__init__(site, settings)
        self.size = settings["{name}_size"]
"""


@pytest.fixture(autouse=True, scope="module")
def registry():
    """Registers the example, and at the end removes what these tests registered, so that no other test sees it."""
    known = set(REGISTRY)
    plugins.import_file(str(EXAMPLE))
    yield
    unlist(*set(REGISTRY) - known)


@pytest.mark.parametrize("task", TASKS)
def test_the_flags_of_a_mechanism_registered_late_reach_both_models(task):
    model = build_from(model_config(task, OURS[task], *BASE[task], *FLAGS))
    assert {attention.mechanism.tau for attention in attention_modules(model)} == {4.0}


@pytest.mark.parametrize("task", TASKS)
def test_a_configuration_runs_its_file_only_if_something_else_names_it_too(task, tmp_path, monkeypatch):
    """This is how a checkpoint or hydra hands over a mechanism whose file has not been run yet."""
    name = f"named_{task}"
    (tmp_path / "made.py").write_text(SOURCE.format(name=name))
    config = model_config(task, OURS[task], *BASE[task])
    for key, value in {"import": str(tmp_path / "made.py"), "mechanism": name, f"{name}_size": 0.25}.items():
        if task == "language_modeling":
            config._set_flag("struct", False)
        setattr(config, f"gpam_{key}", value)
    with pytest.raises(ValueError, match=r"made\.py' is not allowed: only the model's settings.*GPAM_IMPORT=/"):
        build_from(config)
    assert name not in REGISTRY
    monkeypatch.setenv("GPAM_IMPORT", f"nowhere.py:{tmp_path}/made.py")
    model = build_from(config)
    assert {attention.mechanism.size for attention in attention_modules(model)} == {0.25}


def test_a_file_runs_once_and_says_so(tmp_path, caplog):
    (tmp_path / "made.py").write_text(SOURCE.format(name="once"))
    assert plugins.import_file(str(tmp_path / "made.py")) == plugins.import_file(str(tmp_path / "." / "made.py"))
    assert [record.message for record in caplog.records] == [
        f"--gpam-import runs the Python file {tmp_path / 'made.py'}"
    ]


@pytest.mark.parametrize(
    "source, reason",
    [
        ("raise RuntimeError('of the test')", "RuntimeError: of the test"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("def broken(:", r"SyntaxError: .*line 1"),
    ],
)
def test_a_file_that_fails_is_refused_and_not_kept_half_imported(tmp_path, source, reason):
    (tmp_path / "broken.py").write_text(source)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"broken\.py: the file ends with {reason}"):
            plugins.import_file(str(tmp_path / "broken.py"))


@pytest.mark.parametrize(
    "words",
    [
        ["--gpam-import", "FILE"],
        ["--gpam-import=FILE"],
        ["--path", "x.pt", "--model-overrides", "{'gpam_import': 'FILE'}"],
        ["task=language_modeling", "+model.gpam_import=FILE"],
        ["model.gpam_import=FILE"],
    ],
)
def test_every_command_line_can_name_the_file(tmp_path, monkeypatch, words):
    path = tmp_path / "made.py"
    path.write_text("")
    monkeypatch.setattr("sys.argv", ["fairseq", "--model-overrides", "["])
    with pytest.raises(ValueError, match="only the model's settings name this file"):
        plugins.import_setting(str(path))
    monkeypatch.setattr("sys.argv", ["fairseq", *(word.replace("FILE", str(path)) for word in words)])
    assert plugins.import_setting(str(path)) == str(path)


def announce(folder, module, source, monkeypatch):
    """Puts an installed package with one entry point on the path, as pip would leave it."""
    (folder / f"{module}.py").write_text(source)
    facts = folder / f"{module}-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text(f"[fairseq_gpam.mechanisms]\nmade = {module}\n")
    monkeypatch.syspath_prepend(str(folder))


def test_an_installed_package_announces_its_mechanism(tmp_path, monkeypatch):
    announce(tmp_path, "package_of_a_test", SOURCE.format(name="announced"), monkeypatch)
    plugins.import_entry_points()
    plugins.import_entry_points()
    model = build("language_modeling", OURS["language_modeling"], "--gpam-mechanism", "announced")
    assert all(attention.mechanism.name == "announced" for attention in attention_modules(model))


def test_a_broken_package_is_named(tmp_path, monkeypatch):
    announce(tmp_path, "broken_of_a_test", "import no_such_module_at_all\n", monkeypatch)
    with pytest.raises(ImportError, match=r"'made'.*broken_of_a_test.*no_such_module_at_all.*uninstall"):
        plugins.import_entry_points()
