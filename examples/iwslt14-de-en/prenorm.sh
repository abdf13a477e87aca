# shellcheck shell=bash disable=SC2034
# IWSLT14, pre-norm: layer normalisation before each sublayer.

# shellcheck source=/dev/null
source "$REPO/examples/iwslt14-de-en/recipe.sh"
train_flags+=(--encoder-normalize-before --decoder-normalize-before)
