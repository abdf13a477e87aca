#!/usr/bin/env bash
# Prepares WikiText-103 for the task wikitext-103-lm and its variants; --help lists the arguments.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command prepare wikitext-103-lm "$@"
