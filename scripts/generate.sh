#!/usr/bin/env bash
# Translates a task's test set with a trained run.
# Arguments: generate.sh --help, or python -m fairseq_gpam generate --help.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command generate "$@"
