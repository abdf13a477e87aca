#!/usr/bin/env bash
# Averages checkpoints of a run; --help lists the arguments.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command average "$@"
