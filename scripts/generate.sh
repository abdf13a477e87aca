#!/usr/bin/env bash
# Translates a task's test set with a trained run; --help lists the arguments.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command generate "$@"
