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

# Taken where there is no NVIDIA GPU. Where pip finds only a build with CUDA, that is gigabytes: PyTorch's page on
# installing names the place of its builds for the CPU, and GPAM_TORCH takes what it says after "pip install".
TORCH_REQUIREMENT=${GPAM_TORCH:-torch==2.13.0}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "Python 3.11 or 3.12 is needed, and ${PYTHON:-none on PATH} is neither; name it with PYTHON=/path/to/python3.11"
}

# What an installation depends on.
install_stamp() { # EXTRAS
    printf '%s\n' "$1" "$TORCH_REQUIREMENT"
    cat "$REPO/setup.py" "$REPO/fairseq_gpam/engine.py"
}

# Make the repository's virtual environment, .venv, with this package and its extras, unless it has them already, and set
# PYTHON to its interpreter.
make_venv() { # EXTRAS
    local venv=$REPO/.venv extras=$1 base torch pip
    if ! diff -q <(install_stamp "$extras") "$venv/installed-$extras" >/dev/null 2>&1; then
        base=$(find_python)
        "$base" -m venv "$venv" ||
            die "$base cannot make a virtual environment (on Debian: apt install python3.11-venv)"
        pip=("$venv/bin/python" -m pip --disable-pip-version-check)
        if ! "$venv/bin/python" -c 'import torch' 2>/dev/null && ! nvidia-smi -L >/dev/null 2>&1; then
            read -ra torch <<<"$TORCH_REQUIREMENT"
            "${pip[@]}" install "${torch[@]}"
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
