# shellcheck shell=bash disable=SC2034
# WMT14 English to German, base, in sentencepiece pieces of text that is not tokenised.

prepare_script='prepare-wmt14.sh --sentencepiece'
# shellcheck source=/dev/null
source "$REPO/examples/wmt14-en-de/recipe.sh"
