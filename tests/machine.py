"""A machine that can lose its power: every Python process on it is a child of one server, and all die at once."""

import contextlib
import os
import subprocess
import tempfile
from pathlib import Path

import forked
import psutil


def send(signal):
    """Sends a signal to a process that may have ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        signal()


class Machine:
    """`start` runs a command whose `python` and fairseq commands are this machine's; `kill` ends all of them."""

    def __init__(self):
        self.folder = tempfile.TemporaryDirectory()
        self.python, server = forked.start(Path(self.folder.name), forked.RECIPES)
        self.server = psutil.Process(server.pid)
        self.started = [server]

    def start(self, command, **environment):
        process = subprocess.Popen(
            list(map(str, command)),
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment, "PYTHON": str(self.python)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.started.append(process)
        return process

    def kill(self):
        """Ends every process with SIGKILL and returns how many; once stopped, none can start another meanwhile."""
        roots = [self.server, *(psutil.Process(one.pid) for one in self.started[1:] if one.poll() is None)]
        stopped = []
        while new := {one for root in roots for one in (root, *root.children(recursive=True))} - set(stopped):
            for process in new:
                send(process.suspend)
            stopped += new
        for process in stopped:
            send(process.kill)
        for process in self.started:
            with process:
                process.kill()
        psutil.wait_procs(stopped, timeout=30)
        self.folder.cleanup()
        return len(stopped)


class Machines:
    """One machine at a time: a new one when the last has been killed."""

    def __init__(self):
        self.last = None

    @property
    def current(self):
        self.last = self.last or Machine()
        return self.last

    def kill(self):
        """Ends every process of the current machine and returns how many there were."""
        machine, self.last = self.last, None
        return machine.kill() if machine else 0
