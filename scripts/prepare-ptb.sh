#!/usr/bin/env bash
# Prepares the Penn Treebank for the task ptb-lm; --help lists the arguments.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command prepare ptb-lm "$@"
