#!/usr/bin/env bash
# Usage: test-upstream.sh PATH [--stock] [FILE …] [-- pytest flags]
#
# Runs fairseq's own test files, from the checkout of fairseq at PATH, against the installed engine with this package's
# attention and architectures in the place of the stock ones. Tests that are skipped are listed with their reasons.
#   --stock   with fairseq's own attention, to compare
#   FILE      test files below PATH/tests (default: those that run attention or transformers and take a minute or two;
#             test_binaries.py takes much longer)
# PYTHON names the interpreter (default: the repository's .venv, else python3).

set -euo pipefail
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

checkout='' plugin=(-p substitute) files=()
while (($#)); do
    case $1 in
    -h | --help) usage && exit ;;
    --stock) plugin=() ;;
    --) shift && break ;;
    -*) echo "$1 is not known; see --help" >&2 && exit 2 ;;
    *) if [[ -z $checkout ]]; then checkout=$1; else files+=("tests/$(basename "$1")"); fi ;;
    esac
    shift
done
[[ -n $checkout ]] || { usage >&2 && exit 2; }
[[ -f $checkout/tests/test_multihead_attention.py ]] ||
    { echo "$checkout is no checkout of fairseq: it has no tests/test_multihead_attention.py" >&2 && exit 2; }
if ((${#files[@]} == 0)); then
    for name in multihead_attention transformer sequence_generator sequence_scorer inference_dropout export \
        activation_checkpointing lm_context_window; do
        files+=("tests/test_$name.py")
    done
fi
python=${PYTHON:-$repo/.venv/bin/python}
[[ -x $(command -v "$python") ]] || python=python3

# The tests alone are copied: beside the checkout's own fairseq they would import that one, not the installed engine.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cp -r "$checkout/tests" "$work/tests"
cd "$work"
export PYTHONPATH=$work:$repo:$repo/tests/upstream OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$python" -m pytest "${plugin[@]}" -q -rs -W ignore -p no:cacheprovider --rootdir "$work" "${files[@]}" "$@"
