"""Runs Python and fairseq's commands in children forked after fairseq's slow import: a fraction of a second, not six.

`start(folder, modules)` makes `folder/python` and the fairseq commands beside it. They hand arguments, environment,
working directory and open files to a server, which has imported the modules; it forks, runs in the child what was asked
for, and answers with the child's exit status.
"""

import array
import importlib
import json
import logging
import multiprocessing
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import traceback
from pathlib import Path

import torch

SCRIPTS = Path(sys.executable).parent
COMMANDS = [path.name for path in SCRIPTS.glob("fairseq-*")]
FAIRSEQ = ("fairseq.options", "fairseq.sequence_generator", "fairseq.tasks", "fairseq.trainer")
RECIPES = (*FAIRSEQ, "tabulate", "fairseq_gpam.lab.experiments.quickstart")
CLIENT = """#!{python} -IS
import array, json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
descriptors = [0, 1, 2]
for number in os.listdir("/proc/self/fd"):
    if int(number) > 2 and int(number) != server.fileno() and os.path.exists("/proc/self/fd/" + number):
        descriptors.append(int(number))
request = {{"argv": sys.argv, "cwd": os.getcwd(), "environment": dict(os.environ), "descriptors": descriptors}}
server.sendmsg(
    [len(json.dumps(request)).to_bytes(4, "big")],
    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))],
)
server.sendall(json.dumps(request).encode())
answer = server.recv(4)
sys.exit(int.from_bytes(answer, "big") if answer else 1)
"""


def start(folder, modules=FAIRSEQ):
    """Starts a server; returns the interpreter to use and the process, which ends when its stdin is closed.

    `modules` must not be fairseq's commands: they set up logging when they are imported.
    """
    address = str(folder / "socket")
    for name in ("python", *COMMANDS):
        (folder / name).write_text(CLIENT.format(python=sys.executable, address=address))
        (folder / name).chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, address, *modules], stdin=subprocess.PIPE, cwd=folder)
    deadline = time.monotonic() + 600
    while not os.path.exists(address):
        assert server.poll() is None, "the server did not start"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return folder / "python", server


def receive(connection):
    """Returns a request; its `descriptors` map the client's file numbers to the files opened here."""
    ancillary = socket.CMSG_SPACE(64 * array.array("i").itemsize)
    size, messages, _, _ = connection.recvmsg(4, ancillary)
    numbers = array.array("i")
    for _, _, data in messages:
        numbers.frombytes(data[: len(data) - len(data) % numbers.itemsize])
    content = b""
    while len(content) < int.from_bytes(size, "big"):
        content += connection.recv(1 << 16)
    request = json.loads(content)
    request["descriptors"] = dict(zip(request["descriptors"], numbers, strict=True))
    return request


def run(argv):
    """Does what the interpreter or a fairseq command would do with these arguments."""
    name = Path(argv[0]).name
    if argv[1:2] == ["-I"]:
        argv = [argv[0], *argv[2:]]
    if name != "python":
        sys.argv = argv
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    elif argv[1] == "-c":
        sys.argv = ["-c", *argv[3:]]
        exec(argv[2], {"__name__": "__main__"})
    elif argv[1] == "-m":
        sys.argv = argv[2:]
        runpy.run_module(argv[2], run_name="__main__", alter_sys=True)
    elif argv[1].endswith(".py"):
        sys.argv = argv[1:]
        runpy.run_path(argv[1], run_name="__main__")
    else:
        raise ValueError(f"not understood: {argv}")


def child(request, scripts):
    """Takes over the request's surroundings, runs it, and returns its exit status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, descriptor in sorted(request["descriptors"].items()):
        os.dup2(descriptor, number)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode) for n, mode in ((0, "r"), (1, "w"), (2, "w")))
    # The scripts put this folder on PATH; there the commands are clients of this server too, as is whatever Python is
    # started from here.
    sysconfig.get_path = lambda name: scripts
    sys.executable = f"{scripts}/python"
    status = 0
    try:
        run(request["argv"])
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


def serve(address, modules):
    """Answers requests until standard input closes."""
    for name in modules:
        importlib.import_module(name)
    torch.set_num_threads(1)
    logging.getLogger().handlers.clear()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".part")
    listener.listen()
    os.rename(address + ".part", address)
    while True:
        ready, _, _ = select.select([listener, 0], [], [])
        if 0 in ready:
            return
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            status = child(receive(connection), str(Path(address).parent))
            connection.sendall(status.to_bytes(4, "big"))
            # As an interpreter does at its end: loaders would notice it after five seconds, and keep the files open.
            for process in multiprocessing.active_children():
                if process.daemon:
                    process.kill()
            os._exit(0)
        connection.close()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
