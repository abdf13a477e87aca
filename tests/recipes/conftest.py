"""One server of forked interpreters for all recipes that a test process runs."""

import forked
import pytest


@pytest.fixture(scope="session")
def interpreter(tmp_path_factory):
    python, server = forked.start(tmp_path_factory.mktemp("interpreter"))
    yield python
    server.stdin.close()
    server.wait()
