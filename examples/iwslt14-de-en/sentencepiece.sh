# shellcheck shell=bash disable=SC2034
# IWSLT14 in sentencepiece pieces of text that is not tokenised.

prepare_script='prepare-iwslt14.sh --sentencepiece'
# shellcheck source=/dev/null
source "$REPO/examples/iwslt14-de-en/recipe.sh"
