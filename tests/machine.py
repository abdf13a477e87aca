"""A machine that can lose its power: every Python process on it is a child of one server, and all die at once."""

import contextlib
import os
import subprocess
import time

import psutil


def send(signal):
    """Sends a signal to a process that may have ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        signal()


def wait_for(condition, process, seconds=600):
    """Waits until the condition holds; the process must not end before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Machine:
    """`start` runs a command whose `python` and fairseq commands are this machine's; `kill` ends all of them.

    The server itself, which only forks, stays: its imports take longer than most of what is killed.
    """

    def __init__(self, python, server):
        self.python, self.server = python, psutil.Process(server.pid)
        self.started = []

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
        roots = [self.server, *(psutil.Process(one.pid) for one in self.started if one.poll() is None)]
        stopped = []
        while new := {one for root in roots for one in (root, *root.children(recursive=True))} - set(stopped):
            for process in new:
                send(process.suspend)
            stopped += new
        stopped.remove(self.server)
        for process in stopped:
            send(process.kill)
        for process in self.started:
            with process:
                process.kill()
        self.started.clear()
        psutil.wait_procs(stopped, timeout=30)
        self.server.resume()
        return len(stopped)
