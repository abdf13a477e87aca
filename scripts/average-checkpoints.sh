#!/usr/bin/env bash
# Usage: average-checkpoints.sh RUN [CHECKPOINT...] [--last N] [--output NAME]
#
# Averages the parameters of checkpoints of a run into one that generate.sh and eval-lm.sh take with
# --checkpoint.
#   RUN            folder of a run, such as out/runs/wmt14-en-de/dagpam/1
#   CHECKPOINT     files in the run's checkpoints/ to average (default: the last ones by number)
#   --last N       how many of the last ones (default: 5); the training must have kept them
#                  (-- --keep-interval-updates N)
#   --output NAME  file to write in the run's checkpoints/ (default: checkpoint_average.pt)

source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
arguments=() last=5 output=checkpoint_average.pt
while (($#)); do
    case $1 in
        -h | --help)
            usage
            exit 0
            ;;
        --last | --output)
            need_value "$@"
            printf -v "${1#--}" '%s' "$2"
            shift
            ;;
        -*) die "unknown option $1; see --help" ;;
        *) arguments+=("$1") ;;
    esac
    shift
done
((${#arguments[@]} >= 1)) || die "expected a run folder; see --help"
[[ $last =~ ^[1-9][0-9]*$ ]] || die "--last must be a whole number above 0, not '$last'"
folder=${arguments[0]}/checkpoints
[[ -d $folder ]] || die "no $folder; first run scripts/train.sh"

# A run lies in OUT/runs/TASK[-full]/NAME/SEED.
set_out "${arguments[0]}/../../../.."
set_python
if ((${#arguments[@]} > 1)); then
    checkpoints=("${arguments[@]:1}")
    checkpoints=("${checkpoints[@]/#/$folder/}")
else
    checkpoints=("$folder" --last "$last")
fi
exec "$PYTHON" -m fairseq_gpam.experiments.averaging "${checkpoints[@]}" --output "$folder/$output"
