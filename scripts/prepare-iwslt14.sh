#!/usr/bin/env bash
# Usage: prepare-iwslt14.sh [--archive FILE] [--sentencepiece] [--vocabulary N] [--out DIR]
#
# Prepares IWSLT14 German-English (TED talks) for the tasks iwslt14-de-en and iwslt14-en-de, split and
# cleaned as fairseq's examples/translation/prepare-iwslt14.sh does: Moses tokenisation by sacremoses,
# lower case, 10,000 joint BPE merges by subword-nmt. Needs pip install -e '.[recipes]'.
#   --archive FILE   take this de-en.tgz instead of downloading it
#   --sentencepiece  prepare for the tasks *.sentencepiece: the same sentences, not tokenised, in
#                    10,000 sentencepiece BPE pieces
#   --vocabulary N   another number of merges or pieces
#   --out DIR        output folder (default: out)
# Environment: WORKERS, processes to use (default: 1). IWSLT14_URL and IWSLT14_SHA256, another address
# and the checksum of what is there. Run again, it goes on where it stopped.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
IWSLT14_URL=${IWSLT14_URL:-http://dl.fbaipublicfiles.com/fairseq/data/iwslt14/de-en.tgz}
IWSLT14_SHA256=${IWSLT14_SHA256:-}

parse_prepare_arguments subwords "$@"
load_recipe "iwslt14-de-en$variant"
vocabulary=${pieces:-$vocabulary}
fetch_file "$IWSLT14_URL" "$IWSLT14_SHA256" "$archive"
prepare_task iwslt14 "$FOUND_SUM" "$ARCHIVE"
