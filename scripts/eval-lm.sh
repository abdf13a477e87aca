#!/usr/bin/env bash
# Evaluates a trained language model on a task's test set.
# Arguments: eval-lm.sh --help, or python -m fairseq_gpam eval-lm --help.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command eval-lm "$@"
