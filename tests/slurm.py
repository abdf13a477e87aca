"""A SLURM cluster of one node in a temporary folder, without accounting; needs Debian's slurm-wlm and munge.

`python tests/slurm.py COMMAND...` runs a command on one.
"""

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "squeue", "sbatch", "srun")
CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge={age}
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def is_installed():
    return all(find(name) for name in PROGRAMS)


def find(name):
    return shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")


def free_ports(number):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for opened in sockets:
            opened.bind(("127.0.0.1", 0))
        return [opened.getsockname()[1] for opened in sockets]


class Cluster:
    """A running cluster: its folder, and the environment in which its commands find it."""

    def __init__(self, folder, age=300):
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        for name in ("munge", "state", "spool"):
            (folder / name).mkdir()
            # munge refuses a folder that others cannot enter.
            (folder / name).chmod(0o711)
        key = folder / "munge/key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        values = {"host": socket.gethostname().partition(".")[0], "user": getpass.getuser(), "folder": folder}
        text = CONFIGURATION.format(**values, ports=free_ports(2), age=age)
        (folder / "slurm.conf").write_text(text)

    def run(self, *command, check=True):
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=check)

    def start(self):
        munge = self.folder / "munge"
        files = [f"--{name}-file={munge / name}" for name in ("key", "pid", "log", "seed")]
        self.run(find("munged"), f"--socket={munge / 'socket'}", "--num-threads=2", *files)
        self.start_controller()
        self.run(find("slurmd"))
        self.wait_until(lambda: "idle" in self.run("sinfo", "--noheader", "--format=%t", check=False).stdout)

    def start_controller(self):
        self.run(find("slurmctld"))

    def stop(self):
        self.run("scancel", f"--user={getpass.getuser()}", check=False)
        with contextlib.suppress(AssertionError):
            self.wait_until(lambda: not self.run("squeue", "--noheader", check=False).stdout, 15)
        for name in ("slurmd.pid", "slurmctld.pid", "munge/pid"):
            self.stop_daemon(name)

    def stop_daemon(self, name):
        """Ends the daemon that wrote its process id into this file, and waits for that."""
        path = self.folder / name
        if not path.exists():
            return
        process = int(path.read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
        self.wait_until(lambda: not Path(f"/proc/{process}").exists())

    def wait_until(self, condition, seconds=60.0):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, (self.folder / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.1)


@contextlib.contextmanager
def running(**settings):
    """Starts a cluster in a temporary folder and stops it."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
    folder.chmod(0o711)
    cluster = Cluster(folder, **settings)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    with running() as started:
        sys.exit(subprocess.run(sys.argv[1:], env=started.environment).returncode)
