# shellcheck shell=bash disable=SC2034
# WikiText-103, 16 layers, tied embeddings and a plain softmax over all words: the basic model of
# fairseq's examples/language_model/README.md (2 GPUs times 16) with 16 layers in place of 6.

# shellcheck source=/dev/null
source "$REPO/examples/wikitext-103-lm/recipe.sh"
arch=transformer_lm
train_flags=(
    --task language_modeling --tokens-per-sample 512 --sample-break-mode none
    --decoder-layers 16 --share-decoder-input-output-embed --dropout 0.1
    --criterion cross_entropy
    --optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 0.0 --weight-decay 0.01
    --lr 5e-4 --lr-scheduler inverse_sqrt --warmup-updates 4000 --warmup-init-lr 1e-07
    --max-tokens 2048 --update-freq 32
)
default_flags=(
    --max-update 50000 --log-interval 100
    --save-interval-updates 1000 --validate-interval-updates 1000
)
eval_flags=(--sample-break-mode none --tokens-per-sample 512 --context-window 400 --max-tokens 4096)
