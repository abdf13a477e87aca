"""Runs the scripts' Python in children forked after fairseq's slow import: a fraction of a second, not six.

``start(folder)`` makes ``folder/python`` and the fairseq commands beside it; given as PYTHON to the
scripts, they hand arguments, environment, working directory and open files to the server, which
forks, runs what was asked for in the child and answers with its exit status.
"""

import array
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

COMMANDS = ("fairseq-preprocess", "fairseq-train", "fairseq-generate", "fairseq-eval-lm")
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


def start(folder):
    """Start a server; return the interpreter to use and the process, to be ended by closing its stdin."""
    address = str(folder / "socket")
    for name in ("python", *COMMANDS):
        (folder / name).write_text(CLIENT.format(python=sys.executable, address=address))
        (folder / name).chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, address], stdin=subprocess.PIPE, cwd=folder)
    deadline = time.monotonic() + 120
    while not os.path.exists(address):
        assert server.poll() is None, "the server did not start"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return folder / "python", server


def receive(connection):
    """Return a request, its open files in place of their numbers on the client's side."""
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
    """Do what the interpreter or a fairseq command would do with these arguments."""
    name = Path(argv[0]).name
    if argv[1] == "-I":
        argv = [argv[0], *argv[2:]]
    if name != "python":
        sys.argv = argv
        runpy.run_path(str(Path(sys.executable).with_name(name)), run_name="__main__")
    elif argv[1] == "-c":
        sys.argv = ["-c", *argv[3:]]
        exec(argv[2], {"__name__": "__main__"})
    elif argv[1] == "-m":
        sys.argv = argv[2:]
        runpy.run_module(argv[2], run_name="__main__", alter_sys=True)
    else:
        raise ValueError(f"not understood: {argv}")


def child(request, scripts):
    """Take over the request's surroundings, run it, and return its exit status."""
    import sysconfig

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number, descriptor in sorted(request["descriptors"].items()):
        os.dup2(descriptor, number)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode) for n, mode in ((0, "r"), (1, "w"), (2, "w")))
    # The scripts put this folder on PATH; there the commands are clients of this server too.
    sysconfig.get_path = lambda name: scripts
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


def preload():
    """Import what the stages import, but not fairseq's commands: they set up logging when imported."""
    import logging

    import fairseq.options
    import fairseq.sequence_generator
    import fairseq.tasks
    import fairseq.trainer  # noqa: F401
    import tabulate  # noqa: F401
    import torch

    import fairseq_gpam.recipes.quickstart  # noqa: F401

    torch.set_num_threads(1)
    logging.getLogger().handlers.clear()


def serve(address):
    """Answer requests until standard input closes."""
    import select

    preload()
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
            os._exit(0)
        connection.close()


if __name__ == "__main__":
    serve(sys.argv[1])
