# shellcheck shell=bash disable=SC2034
# WikiText-103, 8 layers, adaptive input and softmax.

# shellcheck source=/dev/null
source "$REPO/examples/wikitext-103-lm/recipe.sh"
train_flags+=(--decoder-layers 8)
