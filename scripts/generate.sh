#!/usr/bin/env bash
# Usage: generate.sh TASK MECHANISM [SEED] [options] [-- fairseq-generate flags]
#
# Translates the task's test set with the best checkpoint of a trained run.
#   TASK MECHANISM [SEED] --stock --full --name NAME --out DIR   as for train.sh
#   --checkpoint NAME   file in the run's checkpoints/ (default: checkpoint_best.pt)
# Everything after -- goes to fairseq-generate and beats the recipe's flags. Leaves
# hypotheses.txt, in the test set's order and tokenised if the task's text is, and generate.out,
# generate.log in the run's folder.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_run_arguments "$@"
[[ $kind == translation ]] || die "$task is a language model; use scripts/eval-lm.sh"
need_data

run_stage generate -- fairseq-generate "$OUT/data-bin/$data" --user-dir "$USER_DIR" \
    --path "$folder/checkpoints/$checkpoint" --gen-subset test "${generate_flags[@]}" \
    --required-batch-size-multiple 1 --no-progress-bar --log-format json "${extra[@]}"
