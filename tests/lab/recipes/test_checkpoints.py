"""A run goes on from the newest intact checkpoint, whatever became of the last one."""

import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from fairseq_gpam.lab.recipes import checkpoints
from fairseq_gpam.lab.recipes.checkpoints import CheckpointError


def save(path, updates):
    """A checkpoint as torch writes it, large enough that a flipped bit falls into a tensor."""
    history = [{"num_updates": updates}]
    torch.save(
        {"cfg": {}, "model": {"weight": torch.full((1000,), float(updates))}, "optimizer_history": history}, path
    )


@pytest.fixture
def folder(tmp_path):
    """Three intact checkpoints; the best one is the oldest, though its file is the newest."""
    for name, updates in (("checkpoint_1_100.pt", 100), ("checkpoint_2_200.pt", 200), ("checkpoint_last.pt", 300)):
        save(tmp_path / name, updates)
    save(tmp_path / "checkpoint_average.pt", 250)
    save(tmp_path / "checkpoint_best.pt", 50)
    return tmp_path


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def fill_with_zeros(path):
    path.write_bytes(bytes(path.stat().st_size))


def replace_by_a_foreign_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "no checkpoint")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def replace_by_a_folder(path):
    path.unlink()
    path.mkdir()
    (path / "content").touch()


def replace_by_another_state(path):
    torch.save({"weights": torch.zeros(3)}, path)


BROKEN = [
    cut_in_half,
    empty,
    fill_with_zeros,
    replace_by_a_foreign_zip,
    flip_a_bit,
    replace_by_a_folder,
    replace_by_another_state,
]


@pytest.mark.parametrize("breaks", BROKEN, ids=lambda breaks: breaks.__name__)
def test_a_broken_last_checkpoint_is_replaced_by_the_newest_intact_one(folder, breaks, tmp_path_factory):
    both = Path(shutil.copytree(folder, tmp_path_factory.mktemp("both") / "broken"))
    for name in ("checkpoint_2_200.pt", "checkpoint_last.pt"):
        breaks(both / name)
    assert checkpoints.repair_last(both).endswith("continuing from checkpoint_1_100.pt, update 100")
    last = folder / "checkpoint_last.pt"
    breaks(last)
    done = checkpoints.repair_last(folder)
    assert done.startswith("checkpoint_last.pt is broken (")
    assert done.endswith("continuing from checkpoint_2_200.pt, update 200")
    assert "\n" not in done
    assert last.read_bytes() == (folder / "checkpoint_2_200.pt").read_bytes()
    assert (folder / "checkpoint_last.pt.broken-1").exists()
    assert checkpoints.repair_last(folder) is None


def test_intact_checkpoints_and_an_empty_folder_are_left_alone(folder, tmp_path_factory):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert checkpoints.repair_last(folder) is None
    assert before == {path: path.read_bytes() for path in folder.iterdir()}
    assert checkpoints.repair_last(tmp_path_factory.mktemp("empty")) is None
    assert checkpoints.saved_updates(folder / "checkpoint_last.pt") == 300


def test_every_flipped_bit_of_the_content_is_found(folder):
    """The zip's checksums are of what torch wrote: no byte of a tensor or of the pickle can change unseen."""
    path, intact = folder / "checkpoint_last.pt", (folder / "checkpoint_last.pt").read_bytes()
    with zipfile.ZipFile(path) as archive:
        records = [(info.header_offset, info.file_size) for info in archive.infolist()]
    for offset, size in records:
        name, extra = (int.from_bytes(intact[offset + at : offset + at + 2], "little") for at in (26, 28))
        begin = offset + 30 + name + extra
        for position in range(begin, begin + size, max(1, size // 7)):
            path.write_bytes(intact[:position] + bytes([intact[position] ^ 4]) + intact[position + 1 :])
            with pytest.raises(CheckpointError):
                checkpoints.load(path)


def test_a_missing_last_checkpoint_is_replaced_too(folder):
    (folder / "checkpoint_last.pt").unlink()
    expected = "checkpoint_last.pt is missing; continuing from checkpoint_2_200.pt, update 200"
    assert checkpoints.repair_last(folder) == expected


def test_without_an_intact_checkpoint_it_is_said_how_to_start_afresh(folder):
    for path in folder.iterdir():
        if path.name != "checkpoint_average.pt":
            cut_in_half(path)
    with pytest.raises(CheckpointError, match=r"no intact checkpoint beside it; to start afresh, remove "):
        checkpoints.repair_last(folder)
