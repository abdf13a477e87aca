#!/usr/bin/env bash
# Usage: test.sh [pytest arguments]
#
# Makes a virtual environment in .venv with everything that the tests need, once, and runs them on
# all cores, one thread each. Without arguments it runs all but the recipes' READMEs, which are
# "test.sh tests/recipes". Arguments go to pytest: "test.sh tests/attention -k dagpam".
# Environment: PYTHON, the interpreter that the virtual environment is made with (default:
# python3.11 or python3.12). GPAM_TORCH, what pip is to install as torch, options included.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
    usage
    exit 0
fi
(($#)) || set -- -m "not recipes"
make_venv "$REPO/.venv" fairseq,analysis,entmax,test
export PYTHON
cd "$REPO"
PATH=$REPO/.venv/bin:$PATH exec "$PYTHON" -m pytest --numprocesses "${PYTEST_WORKERS:-$(getconf _NPROCESSORS_ONLN)}" "$@"
