#!/usr/bin/env bash
# Prepares IWSLT14 German-English (TED talks) for the tasks iwslt14-de-en and iwslt14-en-de; --help lists the arguments.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
run_command prepare iwslt14-de-en "$@"
