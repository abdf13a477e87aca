#!/usr/bin/env bash
# Prepares Bible verses, German and English, for the task bible-de-en; --help lists the arguments.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command prepare bible-de-en "$@"
