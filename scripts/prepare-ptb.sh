#!/usr/bin/env bash
# Prepares the Penn Treebank for the task ptb-lm.
# Arguments: prepare-ptb.sh --help, or python -m fairseq_gpam prepare --help.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command prepare ptb-lm "$@"
