# shellcheck shell=bash disable=SC2034
# WikiText-103, 16 layers, adaptive input and softmax: fairseq's
# examples/language_model/README.adaptive_inputs.md.

kind=lm
prepare_script=prepare-wikitext-103.sh
suffixes=(txt)
subwords=words
preprocess_flags=(--only-source)

arch=transformer_lm_wiki103
train_flags=(
    --task language_modeling --tokens-per-sample 3072 --sample-break-mode none
    --criterion adaptive_loss
    --optimizer nag --clip-norm 0.1
    --lr 1.0 --lr-scheduler cosine --warmup-updates 16000 --warmup-init-lr 1e-07
    --lr-period-updates 270000 --t-mult 2 --lr-shrink 0.75 --min-lr 0.0001 --stop-min-lr 1e-09
    --max-tokens 3072 --update-freq 3 --ddp-backend legacy_ddp
)
default_flags=(
    --max-update 286000 --log-interval 100
    --save-interval-updates 5000 --validate-interval-updates 5000
)
eval_flags=(
    --sample-break-mode none --tokens-per-sample 3072 --context-window 2560
    --max-tokens 3072 --softmax-batch 1024
)
