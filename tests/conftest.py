"""What all tests share: one thread, one seed, and that tests marked `gpu` are skipped where there is no GPU."""

import os
import random

import hypothesis
import numpy as np
import pytest
import torch

import fairseq_gpam  # noqa: F401  (registers the models before anything is parsed)

torch.set_num_threads(1)
EXAMPLES = int(os.environ.get("GPAM_PROPERTY_EXAMPLES", "50"))
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
