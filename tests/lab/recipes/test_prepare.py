"""Two processes that prepare the same data do it once, and a wrong download can be repaired."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from fairseq_gpam.__main__ import main
from fairseq_gpam.lab.recipes import downloads, prepare, tasks
from fairseq_gpam.lab.recipes.tasks import File


def test_the_second_to_prepare_a_folder_waits_and_takes_what_the_first_has_made(tmp_path, capsys):
    folder, inside, go_on = tmp_path / "data/made", threading.Event(), threading.Event()

    def first():
        with prepare.build_once(folder, "stamp") as part:
            (part / "text").write_text("whole")
            inside.set()
            assert go_on.wait(60)
            assert (part / "text").exists()

    def second():
        with prepare.build_once(folder, "stamp") as part:
            return part

    with ThreadPoolExecutor(2) as pool:
        making = pool.submit(first)
        assert inside.wait(60)
        waiting = pool.submit(second)
        try:
            said = ""
            while f"waiting for process {os.getpid()}" not in said:
                assert not waiting.done(), waiting.result()
                said += capsys.readouterr().out
        finally:
            go_on.set()
        making.result()
        assert waiting.result() is None
    assert sorted(path.name for path in folder.iterdir()) == ["stamp", "text"]


def test_what_a_killed_process_left_is_made_again(tmp_path):
    (tmp_path / "made.part").mkdir()
    (tmp_path / "made.part/half").touch()
    with prepare.build_once(tmp_path / "made", "stamp") as part:
        (part / "whole").touch()
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["stamp", "whole"]
    assert not part.exists()


def test_a_wrong_download_is_not_kept_and_a_wrong_file_is_named_with_its_remedy(tmp_path):
    source, folder = tmp_path / "source", tmp_path / "downloads"
    source.write_text("right")
    file = File(file="archive", url=source.as_uri(), checksum=downloads.digest(source))
    source.write_text("wrong")
    with pytest.raises(downloads.DownloadError, match=r"has sha256 .* expected .*; it is removed: run again"):
        downloads.fetch(file, folder)
    assert [path.name for path in folder.iterdir()] == ["lock"]
    source.write_text("right")
    path = downloads.fetch(file, folder)
    assert path.read_text() == "right"
    path.write_text("wrong")
    with pytest.raises(downloads.DownloadError, match=f"to download it again: rm {path}"):
        downloads.fetch(file, folder)


def test_the_data_of_a_task_of_the_package_keeps_its_stamp(tmp_path, monkeypatch):
    for name in ("read_corpus", "binarise"):
        monkeypatch.setattr(prepare, name, lambda *_: None)
    (tmp_path / "archive").touch()
    task = tasks.load("iwslt14-de-en")
    prepare.prepare(task, [tmp_path / "archive"], tmp_path)
    stamp = f"iwslt14 {downloads.digest(tmp_path / 'archive')}, subword-nmt 10000"
    assert (task.text(tmp_path) / "stamp").read_text() == f"{stamp}\n"
    preprocess = "fairseq-preprocess --source-lang de --target-lang en"
    assert (task.data_bin(tmp_path) / "stamp").read_text() == f"{stamp}, {preprocess}\n"


@pytest.mark.parametrize("value", ["auto", "0", "-1", "1.5", ""])
def test_a_number_of_workers_that_is_none_is_refused_by_its_name(tmp_path, monkeypatch, value):
    monkeypatch.setenv("WORKERS", value)
    with pytest.raises(prepare.PrepareError, match=f"WORKERS {value} is not allowed; allowed: a whole number"):
        prepare.prepare(tasks.load("ngram-lm"), [], tmp_path)
    assert not list(tmp_path.iterdir())


OUTPUTS = ["prepare bible-de-en", "train bible-de-en dagpam", "generate bible-de-en dagpam", "eval-lm ptb-lm dagpam"]
OUTPUTS += ["quickstart", "cards", "experiment grid.toml"]


@pytest.mark.parametrize("command", OUTPUTS)
@pytest.mark.parametrize("name", ["a:b", "a,b"])
@pytest.mark.parametrize("given", [True, False])
def test_an_output_folder_that_fairseq_takes_for_two_is_refused(tmp_path, monkeypatch, capsys, command, name, given):
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path if given else tmp_path / name)
    with pytest.raises(SystemExit):
        main([*command.split(), *(["--out", f"{name}/out"] if given else [])])
    assert f"argument --out: {tmp_path / name / 'out'} is not allowed; allowed: " in capsys.readouterr().err
    assert not list((tmp_path / name).iterdir())


@pytest.mark.slow
def test_a_file_is_downloaded_once_by_two_at_the_same_time(tmp_path, monkeypatch):
    begun, go_on, urls = threading.Event(), threading.Event(), []

    def slow(url, part):
        urls.append(url)
        begun.set()
        assert go_on.wait(60)
        part.write_text("content")

    monkeypatch.setattr(downloads, "_fetch_url", slow)
    file = File(file="archive", url="made://archive", checksum="")
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(downloads.fetch, file, tmp_path)
        assert begun.wait(60)
        other = pool.submit(downloads.fetch, file, tmp_path)
        with pytest.raises(TimeoutError):
            other.result(0.5)
        go_on.set()
        assert one.result() == other.result() == tmp_path / "archive"
    assert urls == ["made://archive"]
