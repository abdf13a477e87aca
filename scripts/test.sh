#!/usr/bin/env bash
# Usage: test.sh [--all] [pytest arguments]
#
# Makes a virtual environment in .venv with everything that the tests need, once, and runs them on
# all cores, one thread each. Without arguments it runs the tests that are not marked slow, recipes
# or slurm; with --all, every test, and each property on ten times as many examples. Arguments go to
# pytest: "test.sh tests/attention -k dagpam".
# Environment: PYTHON, the interpreter that the virtual environment is made with (default:
# python3.11, 3.12, 3.13). GPAM_TORCH, what pip is to install as torch, options included.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
if [[ ${1:-} == -h || ${1:-} == --help ]]; then usage; fi
if [[ ${1:-} == --all ]]; then
    shift
    export GPAM_PROPERTY_EXAMPLES=${GPAM_PROPERTY_EXAMPLES:-500}
elif ((!$#)); then
    set -- -m "not slow and not recipes and not slurm"
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
make_venv fairseq,analysis,test
cd "$REPO"
# After a crash of one of its processes pytest-xdist would start another, and then never end.
PATH=$REPO/.venv/bin:$PATH exec "$PYTHON" -m pytest --dist loadgroup --max-worker-restart 0 \
    --numprocesses "${PYTEST_WORKERS:-$(getconf _NPROCESSORS_ONLN)}" "$@"
