# shellcheck shell=bash disable=SC2034
# Language model of Shakespeare's works: a small pre-norm transformer that trains on a CPU in minutes.

kind=lm
prepare_script=prepare-shakespeare.sh
suffixes=(txt)
vocabulary=4000
preprocess_flags=(--only-source)

arch=transformer_lm
train_flags=(
    --task language_modeling --tokens-per-sample 128 --sample-break-mode none
    --decoder-layers 4 --decoder-embed-dim 128 --decoder-ffn-embed-dim 512
    --decoder-attention-heads 4 --decoder-normalize-before
    --share-decoder-input-output-embed --dropout 0.1
    --criterion cross_entropy
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0
    --lr 3e-3 --lr-scheduler inverse_sqrt --warmup-updates 200
    --max-tokens 2048 --num-workers 0
)
default_flags=(
    --max-update 1200 --log-interval 25
    --save-interval-updates 200 --validate-interval-updates 200
)
full_flags=(
    --max-update 30000 --patience 5 --log-interval 100
    --save-interval-updates 500 --validate-interval-updates 500
)
eval_flags=(
    --sample-break-mode none --tokens-per-sample 128 --max-tokens 4096
)
