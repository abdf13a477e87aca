#!/usr/bin/env bash
# Trains one model on a task's prepared data.
# Arguments: train.sh --help, or python -m fairseq_gpam train --help.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command train "$@"
