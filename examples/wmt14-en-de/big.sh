# shellcheck shell=bash disable=SC2034
# WMT14 English to German, big: fairseq's examples/scaling_nmt/README.md with its advice for big
# batches (8 GPUs times 16, learning rate 1e-3) gathered on one GPU.

# shellcheck source=/dev/null
source "$REPO/examples/wmt14-en-de/recipe.sh"
arch=transformer_vaswani_wmt_en_de_big
train_flags+=(--dropout 0.3 --lr 1e-3 --max-tokens 3584 --update-freq 128)
default_flags=(
    --max-update 30000 --log-interval 10
    --save-interval-updates 500 --validate-interval-updates 500
)
