# shellcheck shell=bash disable=SC2034
# IWSLT14 English to German: the same as German to English.

source_lang=en target_lang=de
# shellcheck source=/dev/null
source "$REPO/examples/iwslt14-de-en/recipe.sh"
