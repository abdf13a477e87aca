#!/usr/bin/env bash
# Usage: quickstart.sh [lm] [options] [-- fairseq-train flags]
#
# From nothing to a table: makes a virtual environment in .venv, installs the package, fetches a
# corpus, trains stock softmax attention and daGPAM under the same budget and seed, evaluates both
# and prints one table. Without "lm" a translation model (task bible-de-en: sacreBLEU), with it a
# language model (task shakespeare-lm: perplexity).
#   --full        train to convergence (hours on a CPU) instead of 1,200 updates
#   --out DIR     output folder (default: out)
#   --seed N      default 1
#   --jobs N      trainings at the same time, one thread each (default: 2 if there are 2 cores)
#   --runs LIST   mechanisms to compare (default: "stock dagpam")
# Everything after -- goes to every fairseq-train. After an interruption, the same command
# continues where it stopped. Leaves table.md, results.json and learning-curves.png in
# DIR/quickstart/TASK, and all else but the virtual environment below DIR.
# Environment: PYTHON, the interpreter to use (default: python3.11, 3.12, 3.13); if it has the
# package with the extras fairseq and analysis, nothing is installed. GPAM_TORCH, what pip is to
# install as torch, options included.

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"
if [[ ${1:-} == -h || ${1:-} == --help ]]; then usage; fi
if [[ -n ${PYTHON:-} ]] &&
    "$PYTHON" -I -c 'import fairseq, fairseq_gpam, sacrebleu, sentencepiece, tabulate, matplotlib' 2>/dev/null; then
    printf 'using %s, which has fairseq_gpam\n' "$PYTHON"
else
    printf '== install\n'
    make_venv fairseq,analysis
fi
run_command quickstart "$@"
