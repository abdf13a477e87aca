#!/usr/bin/env bash
# Usage: eval-lm.sh TASK MECHANISM [SEED] [options] [-- fairseq-eval-lm flags]
#
# Evaluates the best checkpoint of a trained language model on the task's test set and prints its
# perplexity per subword and per word; both count one end-of-line symbol per line.
#   TASK MECHANISM [SEED] --stock --full --name NAME --out DIR   as for train.sh
# Everything after -- goes to fairseq-eval-lm and beats the recipe's flags. Leaves eval-lm.log in
# the run's folder.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_run_arguments "$@"
[[ $kind == lm ]] || die "$task is a translation task; use scripts/generate.sh and score.sh"
need_data

run_stage eval-lm --text "$OUT/data/$task/test.${suffixes[0]}" \
    --subword "$OUT/data/$task/subword/test.${suffixes[0]}" -- \
    fairseq-eval-lm "$OUT/data-bin/$task" --user-dir "$USER_DIR" \
    --path "$folder/checkpoints/checkpoint_best.pt" --gen-subset test "${eval_flags[@]}" \
    --required-batch-size-multiple 1 --no-progress-bar --log-format json "${extra[@]}"
