#!/usr/bin/env bash
# Trains one model on a task's prepared data; --help lists the arguments.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command train "$@"
