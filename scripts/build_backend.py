"""Builds the package with setuptools, once it has seen that it can work here: pip asks this before any download.

As a script, it prints whether fairseq has a "wheel" for the Python that runs it or must be "compiled", or says in a
sentence why neither works, with status 1.
"""

import os
import platform
import shutil
import sys

OLDEST, NEWEST = (3, 11), (3, 13)
WHEELS = "Python 3.11 and 3.12 on Linux x86_64"
HOW = "get one, for example by 'uv python install 3.12' or 'pyenv install 3.12', and install with that"


def has_wheel(version, system, machine):
    """Returns whether the engine need not be compiled; setup.py's markers say the same."""
    return version < (3, 13) and system == "Linux" and machine == "x86_64"


def problem(version, with_engine):
    """Returns why this package, or with the engine fairseq too, cannot be installed for this Python; "" if it can."""
    shown = ".".join(str(number) for number in version)
    if not OLDEST <= version <= NEWEST:
        return f"fairseq-gpam needs Python 3.11, 3.12 or 3.13, and this is {shown}: {HOW}."
    compilers = (os.environ.get("CXX"), "c++", "g++", "clang++")
    needs_compiler = with_engine and not has_wheel(version, platform.system(), platform.machine())
    if needs_compiler and os.name == "posix" and not any(shutil.which(name) for name in compilers if name):
        return (
            f"fairseq has wheels for {WHEELS}, and for Python {shown} on {platform.system()} {platform.machine()} it "
            f"must be compiled, but there is no C++ compiler: install g++, or take Python 3.12 ({HOW})."
        )
    return ""


def asked_for_engine():
    """Returns whether the installer that runs this was asked for the extra that brings the engine, if that is known."""
    try:
        with open(f"/proc/{os.getppid()}/cmdline", encoding="utf-8") as words:
            return any("[" in word and "fairseq" in word.rpartition("[")[2] for word in words.read().split("\0"))
    except OSError:
        return False


def get_requires_for_build_wheel(config_settings=None):
    refusal = problem(sys.version_info[:2], asked_for_engine())
    if refusal:
        sys.exit(refusal)
    return ["setuptools>=68"]


get_requires_for_build_sdist = get_requires_for_build_editable = get_requires_for_build_wheel


def hook(name):
    """Returns setuptools' hook of this name, which is there once it has been asked for."""

    def run(*arguments, **settings):
        from setuptools import build_meta

        return getattr(build_meta, name)(*arguments, **settings)

    return run


build_sdist, build_wheel, build_editable = hook("build_sdist"), hook("build_wheel"), hook("build_editable")
prepare_metadata_for_build_wheel = hook("prepare_metadata_for_build_wheel")
prepare_metadata_for_build_editable = hook("prepare_metadata_for_build_editable")


if __name__ == "__main__":
    version = sys.version_info[:2]
    refusal = problem(version, with_engine=True)
    if refusal:
        sys.exit(refusal)
    print("wheel" if has_wheel(version, platform.system(), platform.machine()) else "compiled")
