#!/usr/bin/env bash
# Usage: train.sh TASK MECHANISM [SEED] [options] [-- fairseq-train flags]
#
# Trains one model on the data that the task's prepare script left.
#   TASK         a folder of examples/, such as bible-de-en, or FOLDER.VARIANT for another recipe in it,
#                such as iwslt14-en-de.prenorm
#   MECHANISM    what --gpam-mechanism takes, such as dagpam or softmax
#   SEED         default 1
#   --stock      the engine's own, unmodified model (MECHANISM softmax; "stock" for short)
#   --full       train to convergence instead of the recipe's short default budget
#   --name NAME  name of the run (default: MECHANISM, or stock), for variants of a mechanism
#   --out DIR    output folder (default: out)
# Everything after -- goes to fairseq-train and beats the recipe's flags. OMP_NUM_THREADS is 1
# unless set. Leaves DIR/runs/TASK[-full]/NAME/SEED with the command line, log, checkpoints and
# results.json. Interrupted and started again with the same line it goes on; finished, it is not
# repeated; with a changed flag it refuses.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
parse_run_arguments "$@"
need_data

if [[ -n $stock ]]; then
    model=(--arch "$arch")
elif [[ $kind == lm ]]; then
    model=(--arch "${arch/#transformer_lm/transformer_lm_gpam}" --gpam-mechanism "$mechanism")
else
    model=(--arch "${arch/#transformer/transformer_gpam}" --gpam-mechanism "$mechanism")
fi
if [[ -n $full ]]; then budget=("${full_flags[@]}"); else budget=("${default_flags[@]}"); fi

run_stage train -- fairseq-train "$OUT/data-bin/$data" --user-dir "$USER_DIR" \
    --save-dir "$folder/checkpoints" --seed "$seed" "${model[@]}" "${train_flags[@]}" \
    "${budget[@]}" --update-epoch-batch-itr True --required-batch-size-multiple 1 --no-progress-bar --log-format json \
    --no-epoch-checkpoints --keep-interval-updates "$keep_checkpoints" "${extra[@]}"
