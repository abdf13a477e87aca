#!/usr/bin/env bash
# Usage: prepare-wmt14.sh [--archive FOLDER] [--sentencepiece] [--vocabulary N] [--wmt16 FILE] [--out DIR]
#
# Prepares WMT14 English-German for the tasks wmt14-en-de and wmt14-en-de.big: Europarl v7, Common
# Crawl, News Commentary v9, newstest2014; split and cleaned as fairseq's
# examples/translation/prepare-wmt14en2de.sh --icml17 does: Moses tokenisation by sacremoses, 40,000
# joint BPE merges by subword-nmt. Needs pip install -e '.[recipes]'.
#   --archive FOLDER  take the four archives from this folder instead of downloading them
#   --sentencepiece   prepare for the task wmt14-en-de.sentencepiece: not tokenised, in 32,000
#                     sentencepiece BPE pieces
#   --vocabulary N    another number of merges or pieces
#   --wmt16 FILE      prepare for the task wmt14-en-de.wmt16 from this file, the wmt16_en_de.tar.gz that
#                     Google preprocessed; it is downloaded from nowhere, its old address is dead
#   --out DIR         output folder (default: out)
# Environment: WORKERS, processes to use (default: 1; with one, tokenising takes hours).
# WMT14_{EUROPARL,COMMONCRAWL,NEWS,TEST}_URL and ..._SUM, other addresses and checksums (sha256, or
# md5:...); WMT16_SHA256. Run again, it goes on where it stopped.

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
WMT14_EUROPARL_URL=${WMT14_EUROPARL_URL:-https://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz}
WMT14_EUROPARL_SUM=${WMT14_EUROPARL_SUM:-0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e31836103d27d96e7}
WMT14_COMMONCRAWL_URL=${WMT14_COMMONCRAWL_URL:-https://www.statmt.org/wmt13/training-parallel-commoncrawl.tgz}
WMT14_COMMONCRAWL_SUM=${WMT14_COMMONCRAWL_SUM:-c7a74e2ea01ac6c920123108627e35278d4ccb5701e15428ffa34de86fa3a9e5}
WMT14_NEWS_URL=${WMT14_NEWS_URL:-https://www.statmt.org/wmt14/training-parallel-nc-v9.tgz}
WMT14_NEWS_SUM=${WMT14_NEWS_SUM:-cb8953f292298e6877ae433c98912b927cb0766b303f4540512ddd286c748485}
WMT14_TEST_URL=${WMT14_TEST_URL:-https://www.statmt.org/wmt14/test-full.tgz}
WMT14_TEST_SUM=${WMT14_TEST_SUM:-md5:a8cd784e006feb32ac6f3d9ec7eb389a}

parse_prepare_arguments wmt "$@"
load_recipe "wmt14-en-de$variant"
vocabulary=${pieces:-$vocabulary}
if [[ -n $wmt16 ]]; then
    fetch_file '' "${WMT16_SHA256:-}" "$wmt16"
    sums=("$FOUND_SUM" "$WMT14_TEST_SUM")
    fetch_file "$WMT14_TEST_URL" "$WMT14_TEST_SUM" "${archive:+$archive/${WMT14_TEST_URL##*/}}"
    prepare_task wmt16 "${sums[*]}" "$wmt16" "$ARCHIVE"
    exit
fi
archives=() sums=()
for name in EUROPARL COMMONCRAWL NEWS TEST; do
    url=WMT14_${name}_URL sum=WMT14_${name}_SUM
    fetch_file "${!url}" "${!sum}" "${archive:+$archive/${!url##*/}}"
    archives+=("$ARCHIVE")
    sums+=("${!sum}")
done
prepare_task wmt14 "${sums[*]}" "${archives[@]}"
