# shellcheck shell=bash disable=SC2034
# WikiText-103, 8 layers, tied embeddings and a plain softmax over all words.

# shellcheck source=/dev/null
source "$REPO/examples/wikitext-103-lm/softmax.sh"
train_flags+=(--decoder-layers 8)
