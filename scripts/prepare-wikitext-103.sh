#!/usr/bin/env bash
# Usage: prepare-wikitext-103.sh [--archive FILE] [--out DIR]
#
# Prepares WikiText-103 (words) for the tasks wikitext-103-lm and its variants.
#   --archive FILE  take this wikitext-103-v1.zip instead of downloading it; its checksum is verified
#                   all the same
#   --out DIR       output folder (default: out)
# Environment: WORKERS, processes to use (default: 1). WIKITEXT103_URL and WIKITEXT103_SHA256, another
# address and the checksum of what is there. Run again, it goes on where it stopped.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
WIKITEXT103_URL=${WIKITEXT103_URL:-https://wikitext.smerity.com/wikitext-103-v1.zip}
WIKITEXT103_SHA256=${WIKITEXT103_SHA256:-242ba0f20b329cfdf1ccc61e9e9e5b59becf189db7f7a81cd2a0e2fc31539590}

parse_prepare_arguments '' "$@"
load_recipe wikitext-103-lm
fetch_file "$WIKITEXT103_URL" "$WIKITEXT103_SHA256" "$archive"
prepare_task wikitext-103 "$WIKITEXT103_SHA256" "$ARCHIVE"
