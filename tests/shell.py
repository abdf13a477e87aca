"""Commands as a user gives them."""

import os
import subprocess


def run(words, folder, status=0, **environment):
    """What a command prints on either stream; it must end with the status."""
    done = subprocess.run(
        list(map(str, words)),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == status, done.stdout[-5000:]
    return done.stdout


def bash(script, folder, status=0, **environment):
    return run(["bash", "-euo", "pipefail", "-c", script], folder, status, **environment)
