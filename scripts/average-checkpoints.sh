#!/usr/bin/env bash
# Averages checkpoints of a run.
# Arguments: average-checkpoints.sh --help, or python -m fairseq_gpam average --help.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command average "$@"
