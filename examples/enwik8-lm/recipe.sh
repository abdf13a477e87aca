# shellcheck shell=bash disable=SC2034
# enwik8, 12 layers, bytes: size, dropout, optimiser, learning rate and number of updates of
# Transformer-XL's 12-layer model (kimiyoung/transformer-xl, pytorch/run_enwik8_base.sh), without its
# recurrence; the rest is our choice.

kind=lm
prepare_script=prepare-enwik8.sh
suffixes=(txt)
subwords=bytes
preprocess_flags=(--only-source)

arch=transformer_lm
train_flags=(
    --task language_modeling --tokens-per-sample 512 --sample-break-mode none
    --decoder-layers 12 --decoder-embed-dim 512 --decoder-ffn-embed-dim 2048
    --decoder-attention-heads 8 --share-decoder-input-output-embed --dropout 0.1
    --criterion cross_entropy
    --optimizer adam --clip-norm 0.25
    --lr 2.5e-4 --lr-scheduler cosine --lr-period-updates 399000 --warmup-updates 1000
    --max-tokens 11264
)
default_flags=(
    --max-update 400000 --log-interval 200
    --save-interval-updates 4000 --validate-interval-updates 4000
)
eval_flags=(--sample-break-mode none --tokens-per-sample 512 --context-window 384 --max-tokens 16384)
