#!/usr/bin/env bash
# Scores the translations of a run with sacreBLEU, or compares those of two runs; --help lists the arguments.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command score "$@"
