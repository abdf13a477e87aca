#!/usr/bin/env bash
# Usage: score.sh RUN [RUN] [--references FILE] [--split-compounds]
#
# Scores the hypotheses.txt of a run's folder with sacreBLEU: BLEU and chrF on detokenised text, each
# with its signature, added to the folder's results.json. For a task with tokenised text it first
# detokenises (hypotheses.detok.txt), and prints the tokenised BLEU of older papers too, labelled as
# such. With two runs, prints sacreBLEU's paired bootstrap test of the second against the first.
# Stops if hypotheses and references differ in number.
#   RUN                folder of a run, such as out/runs/bible-de-en/dagpam/1
#   --references FILE  raw reference text (default: the test set of the run's task)
#   --split-compounds  tokenised BLEU: split words at hyphens first ("compound splitting")

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
runs=() references='' options=()
while (($#)); do
    case $1 in
        -h | --help)
            usage
            exit 0
            ;;
        --references)
            need_value "$@"
            references=$2
            shift
            ;;
        --split-compounds) options+=("$1") ;;
        -*) die "unknown option $1; see --help" ;;
        *) runs+=("$1") ;;
    esac
    shift
done
((${#runs[@]} == 1 || ${#runs[@]} == 2)) || die "expected one or two run folders; see --help"
for run in "${runs[@]}"; do
    [[ -f $run/hypotheses.txt ]] || die "no $run/hypotheses.txt; first run scripts/generate.sh"
done

# A run lies in OUT/runs/TASK[-full]/NAME/SEED.
set_out "${runs[0]}/../../../.."
task_folder=$(basename "$(cd "${runs[0]}/../.." && pwd)")
set_python
load_recipe "${task_folder%-full}"
references=${references:-$OUT/data/$data/test.$target_lang}
if [[ -n $lowercase ]]; then options+=(--lowercase); fi
if [[ $tokenizer == moses ]]; then
    options+=(--detokenize "$target_lang" --tokenized "$OUT/data/$data/input/test.$target_lang")
fi

if ((${#runs[@]} == 1)); then command=score; else command=compare; fi
exec "$PYTHON" -m fairseq_gpam.experiments.results "$command" "${runs[@]}" --references "$references" \
    "${options[@]}"
