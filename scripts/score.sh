#!/usr/bin/env bash
# Scores the translations of a run with sacreBLEU, or compares those of two runs.
# Arguments: score.sh --help, or python -m fairseq_gpam score --help.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command score "$@"
