"""What is installed, what `python -m fairseq_gpam` prints, what the repository holds."""

import ast
import graphlib
import importlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
from fairseq.models import ARCH_MODEL_INV_REGISTRY

import fairseq_gpam
from fairseq_gpam.__main__ import main
from fairseq_gpam.attention import REGISTRY

PACKAGE = Path(fairseq_gpam.__path__[0]).resolve()
REPOSITORY = PACKAGE.parent
sys.path.append(str(REPOSITORY / "scripts"))
build_backend = importlib.import_module("build_backend")


def test_bare_call_prints_exactly_the_user_dir_from_anywhere(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "fairseq_gpam"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=True)
    assert result.stdout == f"{PACKAGE}\n"


def test_info_prints_versions_engine_models_architectures_and_mechanisms(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"engine\s+(ve-fairseq 0\.12\.3|fairseq-fixed 0\.12\.3\.1)", text)
    architectures = [*ARCH_MODEL_INV_REGISTRY["transformer_gpam"], *ARCH_MODEL_INV_REGISTRY["transformer_lm_gpam"]]
    facts = [each for mechanism in REGISTRY.values() for each in (mechanism.name, mechanism.formula)]
    assert all(word in text for word in (fairseq_gpam.__version__, "\ntorch ", *architectures, *facts))


@pytest.fixture(scope="module")
def setup_arguments():
    found = {}
    kept, setuptools.setup = setuptools.setup, lambda **arguments: found.update(arguments)
    here = os.getcwd()
    try:
        os.chdir(REPOSITORY)
        runpy.run_path("setup.py", run_name="__main__")
    finally:
        setuptools.setup = kept
        os.chdir(here)
    return found


def test_setup_pins_the_engines_by_platform_and_never_names_bare_fairseq(setup_arguments):
    extra = setup_arguments["extras_require"]["fairseq"]
    (wheel,) = [r for r in extra if r.startswith("ve-fairseq==0.12.3;")]
    (source,) = [r for r in extra if r.startswith("fairseq-fixed==0.12.3.1;")]
    from packaging.requirements import Requirement

    for system, machine, version, has_wheel in (
        ("Linux", "x86_64", "3.11", True),
        ("Linux", "x86_64", "3.12", True),
        ("Linux", "x86_64", "3.13", False),
        ("Linux", "aarch64", "3.11", False),
        ("Darwin", "arm64", "3.12", False),
        ("Windows", "AMD64", "3.11", False),
    ):
        place = {"platform_system": system, "platform_machine": machine, "python_version": version}
        assert Requirement(wheel).marker.evaluate(place) == has_wheel
        assert Requirement(source).marker.evaluate(place) != has_wheel
        assert build_backend.has_wheel(tuple(map(int, version.split("."))), system, machine) == has_wheel
    extras = [text for texts in setup_arguments["extras_require"].values() for text in texts]
    everything = [*setup_arguments["install_requires"], *extras]
    names = {Requirement(text).name for text in everything}
    assert "fairseq" not in names
    assert not any(text.startswith("numpy<") for text in everything)
    assert any(text.startswith("torch>=2.6") for text in everything)
    assert any(text.startswith("sacrebleu>=2") for text in extra)
    assert any(text.startswith("sentencepiece") for text in extra)


def test_setup_supports_python_3_11_to_3_13_and_agrees_with_the_package(setup_arguments):
    from packaging.specifiers import SpecifierSet

    pythons = SpecifierSet(setup_arguments["python_requires"])
    assert [minor for minor in range(9, 20) if f"3.{minor}" in pythons] == [11, 12, 13]
    assert setup_arguments["version"] == fairseq_gpam.__version__
    assert setup_arguments["name"] == "fairseq-gpam"
    folders = {
        ".".join(path.parent.relative_to(REPOSITORY).parts) for path in (REPOSITORY / "fairseq_gpam").rglob("*.py")
    }
    assert set(setup_arguments["packages"]) == folders


@pytest.mark.parametrize("version", [(3, 9), (3, 10), (3, 14), (4, 0)])
def test_a_python_that_cannot_work_is_refused_in_a_sentence_that_says_which_can(version):
    refusal = build_backend.problem(version, with_engine=False)
    assert refusal.count(". ") == 0 and "3.11, 3.12 or 3.13" in refusal and "uv python install 3.12" in refusal


@pytest.mark.parametrize("minor", [11, 12, 13])
def test_a_compiler_is_needed_only_for_an_engine_without_a_wheel(minor, tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build_backend.problem((3, minor), with_engine=False) == ""
    assert ("compiler" in build_backend.problem((3, minor), with_engine=True)) == (minor == 13)
    (tmp_path / "g++").touch(0o755)
    assert build_backend.problem((3, minor), with_engine=True) == ""


@pytest.mark.slow
def test_pip_refuses_before_it_downloads_anything(tmp_path):
    """A backend that knows older versions of Python only, and no place to download from."""
    for name in ("setup.py", "pyproject.toml"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    text = (REPOSITORY / "scripts/build_backend.py").read_text(encoding="utf-8")
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts/build_backend.py").write_text(re.sub(r"(?m)^(OLDEST.*)\(.*\)$", r"\1(3, 9)", text))
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--target", tmp_path / "target", tmp_path]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode and "fairseq-gpam needs Python 3.11, 3.12 or 3.13" in done.stdout + done.stderr


SOURCES = {
    ".".join(("fairseq_gpam", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}
SIGNATURES_OF_OTHERS = {
    ("fairseq_gpam.modules.multihead_attention", "forward"),  # fairseq's
    ("fairseq_gpam.attention.functional", "dagpam_attention"),  # scaled_dot_product_attention's and daGPAM's three
}


def test_no_file_has_more_than_400_lines():
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in SOURCES.items()}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_no_function_has_more_than_8_parameters():
    found = []
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                parameters = [entry.arg for entry in ast.walk(node.args) if isinstance(entry, ast.arg)]
                if len([one for one in parameters if one not in ("self", "cls")]) > 8:
                    found.append((name, node.name))
    assert set(found) == SIGNATURES_OF_OTHERS


def test_no_ten_lines_stand_twice():
    places = {}
    for name, path in SOURCES.items():
        lines = [" ".join(line.split()) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        for start in range(len(lines) - 9):
            places.setdefault(tuple(lines[start : start + 10]), []).append(name)
    assert [names for names in places.values() if len(names) > 1] == []


def imports(tree):
    """All modules that a file imports, also inside functions, where an import would only hide a circular one."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            found.update(name if name in SOURCES else node.module for name in names)
    return found


IMPORTS = {name: imports(tree) for name, tree in TREES.items()}


def test_no_imports_are_circular():
    graph = {name: {one for one in imported if one in SOURCES and one != name} for name, imported in IMPORTS.items()}
    tuple(graphlib.TopologicalSorter(graph).static_order())


def test_every_folder_imports_only_what_the_map_in_design_md_allows():
    text = (REPOSITORY / "docs/design.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `fairseq_gpam/([\w/]+?)(?:/|\.py)` \|.*\| (.+) \|$", text, re.MULTILINE)
    allowed = {folder.replace("/", "."): set(re.findall(r"`([\w/]+)`", cell)) for folder, cell in rows}

    def room(module):
        """The innermost folder of the map that a module is in."""
        inside = module.removeprefix("fairseq_gpam.")
        return max((one for one in allowed if f"{inside}.".startswith(f"{one}.")), key=len, default=None)

    folders = {name for name in SOURCES if (PACKAGE.parent / name.replace(".", "/") / "__init__.py").exists()}
    without_room = {name for name in folders - {"fairseq_gpam", "fairseq_gpam.lab"} if room(name) is None}
    assert without_room == set()
    wrong = set()
    for name, imported in IMPORTS.items():
        here = room(name)
        for one in imported:
            if here and one.startswith("fairseq_gpam."):
                inside = one.removeprefix("fairseq_gpam.").replace(".", "/")
                ways = {here.replace(".", "/"), *allowed[here]}
                if not any(f"{inside}/".startswith(f"{way}/") for way in ways):
                    wrong.add((name, one))
    assert wrong == set()


def test_attention_imports_only_pytorch():
    rooms = [imported for name, imported in IMPORTS.items() if name.startswith("fairseq_gpam.attention")]
    found = {one.partition(".")[0] for one in set().union(*rooms)}
    assert found - sys.stdlib_module_names == {"torch", "fairseq_gpam"}
