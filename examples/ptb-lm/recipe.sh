# shellcheck shell=bash disable=SC2034
# Penn Treebank, 15 layers. The hyper-parameters are our choice: none are published for the numbers in
# the README.

kind=lm
prepare_script=prepare-ptb.sh
suffixes=(txt)
subwords=words
preprocess_flags=(--only-source)

arch=transformer_lm
train_flags=(
    --task language_modeling --tokens-per-sample 128 --sample-break-mode none
    --decoder-layers 15 --decoder-embed-dim 512 --decoder-ffn-embed-dim 2048
    --decoder-attention-heads 8 --share-decoder-input-output-embed
    --dropout 0.3 --attention-dropout 0.1
    --criterion cross_entropy
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 0.25 --weight-decay 0.01
    --lr 5e-4 --lr-scheduler inverse_sqrt --warmup-updates 2000
    --max-tokens 4096
)
default_flags=(
    --max-update 20000 --patience 10 --log-interval 50
    --save-interval-updates 250 --validate-interval-updates 250
)
eval_flags=(--sample-break-mode none --tokens-per-sample 128 --context-window 96 --max-tokens 8192)
