#!/usr/bin/env bash
# Prepares enwik8, the first 100 million bytes of a Wikipedia dump, for the task enwik8-lm.
# Arguments: prepare-enwik8.sh --help, or python -m fairseq_gpam prepare --help.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command prepare enwik8-lm "$@"
