#!/usr/bin/env bash
# Prepares WMT14 English-German for the task wmt14-en-de and its variants; --help lists the arguments.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command prepare wmt14-en-de "$@"
