#!/usr/bin/env bash
# Usage: prepare-enwik8.sh [--archive FILE] [--out DIR]
#
# Prepares enwik8, the first 100 million bytes of a Wikipedia dump, for the task enwik8-lm: 90, 5 and 5
# million bytes for training, validation and test, each byte a token (a line feed is the end of line).
#   --archive FILE  take this enwik8.zip instead of downloading it; its checksum is verified all the
#                   same
#   --out DIR       output folder (default: out)
# Environment: WORKERS, processes to use (default: 1). ENWIK8_URL and ENWIK8_SHA256, another address
# and the checksum of what is there; ENWIK8_HELD_OUT, bytes of the validation and of the test set. Run
# again, it goes on where it stopped.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
ENWIK8_URL=${ENWIK8_URL:-http://mattmahoney.net/dc/enwik8.zip}
ENWIK8_SHA256=${ENWIK8_SHA256:-547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc}
ENWIK8_HELD_OUT=${ENWIK8_HELD_OUT:-5000000}

parse_prepare_arguments '' "$@"
load_recipe enwik8-lm
fetch_file "$ENWIK8_URL" "$ENWIK8_SHA256" "$archive"
prepare_task enwik8 "$ENWIK8_SHA256" "$ARCHIVE" -- --held-out "$ENWIK8_HELD_OUT"
