#!/usr/bin/env bash
# Prepares Bible verses, German and English, for the task bible-de-en.
# Arguments: prepare-bible.sh --help, or python -m fairseq_gpam prepare --help.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command prepare bible-de-en "$@"
