#!/usr/bin/env bash
# Prepares Multi30k (captions of photographs) for the task multi30k-en-de; --help lists the arguments.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command prepare multi30k-en-de "$@"
