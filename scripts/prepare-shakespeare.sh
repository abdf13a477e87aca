#!/usr/bin/env bash
# Prepares Shakespeare's works for the task shakespeare-lm; --help lists the arguments.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command prepare shakespeare-lm "$@"
