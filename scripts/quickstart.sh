#!/usr/bin/env bash
# Usage: quickstart.sh [lm] [options] [-- fairseq-train flags]
#
# From nothing to a table: makes a virtual environment, installs the package, fetches a corpus,
# trains stock softmax attention and daGPAM under the same budget and seed, evaluates both and
# prints one table. Without "lm" a translation model (task bible-de-en: sacreBLEU), with it a
# language model (task shakespeare-lm: perplexity).
#   --full        train to convergence (hours on a CPU) instead of 1,200 updates
#   --out DIR     output folder (default: out)
#   --seed N      default 1
#   --jobs N      trainings at the same time, one thread each (default: 2 if there are 2 cores)
#   --runs LIST   mechanisms to compare (default: "stock dagpam")
# Everything after -- goes to every fairseq-train. Interrupted and started again with the same line,
# it goes on where it stopped. Leaves table.md, results.json and learning-curves.png in
# DIR/quickstart/TASK, and all it needed below DIR.
# Environment: PYTHON, the interpreter to use (default: python3.11 or python3.12); if it has the
# package with the extras fairseq and analysis, nothing is installed. GPAM_TORCH, what pip is to
# install as torch, options included.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

task=bible-de-en out=out seed=1 jobs='' runs='stock dagpam' full='' extra=()
while (($#)); do
    case $1 in
        -h | --help)
            usage
            exit 0
            ;;
        lm) task=shakespeare-lm ;;
        --full) full=--full ;;
        --out | --seed | --jobs | --runs)
            need_value "$@"
            printf -v "${1#--}" '%s' "$2"
            shift
            ;;
        --)
            shift
            extra=("$@")
            break
            ;;
        *) die "unexpected argument $1; see --help" ;;
    esac
    shift
done
cores=$(getconf _NPROCESSORS_ONLN)
jobs=${jobs:-$((cores >= 2 ? 2 : 1))}
[[ $jobs =~ ^[1-9][0-9]*$ ]] || die "--jobs must be a whole number above 0, not '$jobs'"
read -ra names <<<"$runs"
set_out "$out"
load_recipe "$task"

step() { printf '\n== %s (%d min %d s)\n' "$1" $((SECONDS / 60)) $((SECONDS % 60)); }

pids=()
stop_all() {
    trap - INT TERM
    if ((${#pids[@]})); then kill "${pids[@]}" 2>/dev/null || true; fi
    wait
    say "stopped; the same line goes on from here" >&2
    exit 130
}
trap stop_all INT TERM

# Run a stage's script for every mechanism, at most $jobs at a time.
for_each_run() { # SCRIPT [-- flags]
    local script=$1 name failed=0
    shift
    pids=()
    for name in "${names[@]}"; do
        if (($(jobs -rp | wc -l) >= jobs)); then wait -n || failed=1; fi
        bash "$REPO/scripts/$script" "$task" "$name" "$seed" --out "$OUT" ${full:+"$full"} "$@" &
        pids+=($!)
    done
    local pid
    for pid in "${pids[@]}"; do wait "$pid" || failed=1; done
    pids=()
    ((failed == 0)) || die "$script failed; see above"
}

step "install"
if [[ -n ${PYTHON:-} ]] &&
    "$PYTHON" -I -c 'import fairseq_gpam, sacrebleu, sentencepiece, tabulate, matplotlib' 2>/dev/null; then
    say "using $PYTHON, which has fairseq_gpam"
else
    make_venv "$OUT/venv" fairseq,analysis
fi
export PYTHON

step "prepare $task"
bash "$REPO/scripts/$prepare_script" --out "$OUT"

step "train ${names[*]}"
for_each_run train.sh -- "${extra[@]}"

folders=()
for name in "${names[@]}"; do folders+=("$(run_folder "$task" "$name" "$seed" "$full")"); done
if [[ $kind == translation ]]; then
    step "translate the test set"
    for_each_run generate.sh
    step "score"
    for folder in "${folders[@]}"; do
        say "$folder"
        bash "$REPO/scripts/score.sh" "$folder"
    done
else
    step "evaluate"
    for_each_run eval-lm.sh
fi

step "results"
report=$OUT/quickstart/$task${full:+-full}
"$PYTHON" -m fairseq_gpam.experiments.results report "${folders[@]}" --out "$report"
say ""
say "written to $report: table.md, results.json, learning-curves.png"
