#!/usr/bin/env bash
# Prepares enwik8, the first 100 million bytes of a Wikipedia dump, for the task enwik8-lm; --help lists the arguments.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command prepare enwik8-lm "$@"
