"""What all tests share: one thread, one seed, and that tests marked `gpu` are skipped where there is no GPU."""

import random

import hypothesis
import numpy as np
import pytest
import torch
from quick import EXAMPLES

import fairseq_gpam  # noqa: F401  (registers the models before anything is parsed)
from fairseq_gpam.attention.core import matmul

torch.set_num_threads(1)
hypothesis.settings.register_profile("shared", max_examples=EXAMPLES, deadline=None, derandomize=True)
hypothesis.settings.load_profile("shared")


def pytest_collection_modifyitems(items):
    """Tests that share trained models run in one of several processes, which trains them once."""
    for item in items:
        if item.path.parent.name in ("analysis", "cli"):
            item.add_marker(pytest.mark.xdist_group(item.path.parent.name))


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def onednn(monkeypatch):
    """Lets oneDNN make every product that it may; returns the list of those that it made."""
    made = []
    own = torch.ops.mkldnn._linear_pointwise

    def recorded(operation):
        def call(x, *others):
            made.append(operation)
            return operation(x, *others)

        return call

    recorder = recorded(own)
    recorder.binary = recorded(own.binary)

    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(matmul, "WORTH_ONEDNN", 0)
    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", recorder)
    return made


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A replacement for the interpreter and the process behind it, one of each for a test process."""
    import forked

    python, process = forked.start(tmp_path_factory.mktemp("interpreter"), forked.RECIPES)
    yield python, process
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="session")
def interpreter(server):
    """A replacement for the interpreter that forks instead of importing fairseq again."""
    return server[0]


@pytest.fixture(scope="module")
def machine(server):
    """A machine that can be killed."""
    from machine import Machine

    machine = Machine(*server)
    yield machine
    machine.kill()
