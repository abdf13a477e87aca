#!/usr/bin/env bash
# Prepares Multi30k (captions of photographs) for the task multi30k-en-de.
# Arguments: prepare-multi30k.sh --help, or python -m fairseq_gpam prepare --help.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command prepare multi30k-en-de "$@"
