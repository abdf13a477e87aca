#!/usr/bin/env bash
# Evaluates a trained language model on a task's test set; --help lists the arguments.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command eval-lm "$@"
