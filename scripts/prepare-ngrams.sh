#!/usr/bin/env bash
# Prepares the in-context n-grams of the task ngram-lm.
# Arguments: prepare-ngrams.sh --help, or python -m fairseq_gpam prepare --help.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command prepare ngram-lm "$@"
