#!/usr/bin/env bash
# Prepares WMT14 English-German for the task wmt14-en-de and its variants.
# Arguments: prepare-wmt14.sh --help, or python -m fairseq_gpam prepare --help.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command prepare wmt14-en-de "$@"
