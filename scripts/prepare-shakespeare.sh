#!/usr/bin/env bash
# Prepares Shakespeare's works for the task shakespeare-lm.
# Arguments: prepare-shakespeare.sh --help, or python -m fairseq_gpam prepare --help.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command prepare shakespeare-lm "$@"
