# shellcheck shell=bash disable=SC2034
# The big model on the WMT16 training data that Google preprocessed, as in fairseq's
# examples/scaling_nmt/README.md.

prepare_script='prepare-wmt14.sh --wmt16 wmt16_en_de.tar.gz'
# shellcheck source=/dev/null
source "$REPO/examples/wmt14-en-de/big.sh"
