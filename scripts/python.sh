# shellcheck shell=bash
# What the scripts source: finds a Python, makes a virtual environment, hands over to python -m fairseq_gpam.

set -euo pipefail
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

die() {
    printf '%s\n' "$*" >&2
    exit 1
}

# Print the calling script's header comment and end.
usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit 0
}

# What is installed where there is no NVIDIA GPU: from PyTorch's own place of builds for the CPU, because that of pip's
# usual one has CUDA, which is gigabytes. GPAM_TORCH takes other words for "pip install", options included.
TORCH_REQUIREMENT=${GPAM_TORCH:-torch==2.13.0}
TORCH_CPU=${GPAM_TORCH_CPU:-https://download.pytorch.org/whl/cpu}

# Print the first Python that fairseq can be installed for, those with a wheel of it first; or say why there is none.
find_python() {
    local candidate reason reasons=''
    for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
        command -v "$candidate" >/dev/null || continue
        if reason=$("$candidate" "$REPO/scripts/build_backend.py" 2>&1); then
            command -v "$candidate"
            return
        fi
        reasons=${reason##*$'\n'}
    done
    die "${reasons:-Python 3.11, 3.12 or 3.13 is needed, and ${PYTHON:-none} is not on PATH: install one, for example by\
 \'uv python install 3.12\' or \'pyenv install 3.12\'}; PYTHON=/path/to/python names one that is not on PATH"
}

# Install PyTorch: its build for the CPU if there is no NVIDIA GPU.
install_torch() { # PIP...
    local torch
    if nvidia-smi -L >/dev/null 2>&1; then return; fi
    read -ra torch <<<"$TORCH_REQUIREMENT"
    if [[ -z ${GPAM_TORCH:-} && $(uname -s) == Linux ]]; then
        printf "PyTorch's build for the CPU, from %s\n" "$TORCH_CPU"
        if answers "$TORCH_CPU/torch/" && "$@" install "${torch[@]}" --index-url "$TORCH_CPU"; then return; fi
        printf 'It cannot be had from there, so pip looks where it usually does; that build may have CUDA, gigabytes.\n'
    fi
    "$@" install "${torch[@]}"
}

# Whether a page can be read within seconds.
answers() { # ADDRESS
    "$venv/bin/python" -c 'import sys, urllib.request as u; u.urlopen(sys.argv[1], timeout=5)' "$1" 2>/dev/null
}

# Compile fairseq with what is installed, so that pip does not fetch PyTorch once more for that.
compile_engine() { # PIP...
    local version
    version=$(PYTHONPATH=$REPO "$venv/bin/python" -c 'from fairseq_gpam.engine import PINS; print(PINS["fairseq-fixed"])')
    "$@" install torch numpy cython setuptools wheel
    "$@" install --no-build-isolation "fairseq-fixed==$version"
}

# What an installation depends on.
install_stamp() { # EXTRAS
    printf '%s\n' "$1" "$TORCH_REQUIREMENT"
    cat "$REPO/setup.py" "$REPO/fairseq_gpam/engine.py"
}

# Make the repository's virtual environment, .venv, with this package and its extras, unless it has them already, and set
# PYTHON to its interpreter.
make_venv() { # EXTRAS
    local venv=$REPO/.venv extras=$1 base engine pip
    if ! diff -q <(install_stamp "$extras") "$venv/installed-$extras" >/dev/null 2>&1; then
        base=$(find_python)
        engine=$("$base" "$REPO/scripts/build_backend.py")
        if [[ $engine == compiled ]]; then
            printf 'fairseq has no wheel for %s here and is compiled, which takes some minutes.\n' "$("$base" --version)"
        fi
        "$base" -m venv "$venv" ||
            die "$base cannot make a virtual environment (on Debian: apt install python3-venv)"
        pip=("$venv/bin/python" -m pip --disable-pip-version-check)
        if ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then install_torch "${pip[@]}"; fi
        if [[ $engine == compiled ]] && ! "$venv/bin/python" -c 'import fairseq' 2>/dev/null; then
            compile_engine "${pip[@]}"
        fi
        "${pip[@]}" install -e "${REPO}[$extras]"
        install_stamp "$extras" >"$venv/installed-$extras"
    fi
    export PYTHON=$venv/bin/python
}

has_package() { # PYTHON
    "$1" -c 'import sys; from importlib.util import find_spec as f; sys.exit(not (f("fairseq_gpam") and f("fairseq")))' 2>/dev/null
}

# Hand over to the command with PYTHON if given, else with the first that has the package: python on PATH, .venv.
run_command() { # COMMAND ARGUMENTS...
    local candidate candidates=(python python3 "$REPO/.venv/bin/python")
    if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if has_package "$candidate"; then
            exec "$candidate" -m fairseq_gpam "$@"
        fi
    done
    die "fairseq_gpam and fairseq are not installed for ${candidates[*]}; run: pip install -e '.[fairseq]'"
}
