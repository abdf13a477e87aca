#!/usr/bin/env bash
# Usage: eval-lm.sh TASK MECHANISM [SEED] [options] [-- fairseq-eval-lm flags]
#
# Evaluates the best checkpoint of a trained language model on the task's test set and prints its
# perplexity per subword and per word, both counting one end-of-line symbol per line; on text whose
# tokens are bytes, its bits per character.
#   TASK MECHANISM [SEED] --stock --full --name NAME --out DIR   as for train.sh
#   --checkpoint NAME   file in the run's checkpoints/ (default: checkpoint_best.pt)
# Everything after -- goes to fairseq-eval-lm and beats the recipe's flags. Leaves eval-lm.log in
# the run's folder.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_run_arguments "$@"
[[ $kind == lm ]] || die "$task is a translation task; use scripts/generate.sh and score.sh"
need_data

unit=()
if [[ $subwords == bytes ]]; then unit=(--bytes); fi
run_stage eval-lm --text "$OUT/data/$data/test.${suffixes[0]}" \
    --subword "$(binarised_text)/test.${suffixes[0]}" "${unit[@]}" -- \
    fairseq-eval-lm "$OUT/data-bin/$data" --user-dir "$USER_DIR" \
    --path "$folder/checkpoints/$checkpoint" --gen-subset test "${eval_flags[@]}" \
    --required-batch-size-multiple 1 --no-progress-bar --log-format json "${extra[@]}"
