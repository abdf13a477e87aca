#!/usr/bin/env bash
# Prepares the in-context n-grams of the task ngram-lm; --help lists the arguments.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command prepare ngram-lm "$@"
