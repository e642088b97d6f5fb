#!/usr/bin/env bash
# Run the study on SLURM: bash scripts/slurm.sh N [sbatch options], after `make .venv/ready`, on a login node.
#
# Submits three jobs that share this folder: what all runs need (data, features, the default run's training), an array of N
# jobs with a part of the ablations each, and a last one with what is left and the figures. Options are passed to all three.
set -euo pipefail

usage="usage: bash scripts/slurm.sh N [sbatch options], N jobs at a time; e.g. bash scripts/slurm.sh 4 --gres=gpu:1 --time=12:00:00"
fail() {
  echo "slurm.sh: $1" >&2
  exit 2
}

case "${1-}" in
-h | --help)
  echo "$usage"
  exit
  ;;
esac
[[ "${1-}" =~ ^[1-9][0-9]*$ ]] || fail "N = '${1-}': expected a whole number from 1. $usage"
parts=$1
shift
for option in "$@"; do
  case "$option" in
  -a* | --array* | --wrap*) fail "$option: set by this script. $usage" ;;
  esac
done
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -x .venv/bin/python ]] || fail "no $PWD/.venv/bin/python: run \`make .venv/ready\` first"
command -v sbatch > /dev/null || fail "no sbatch on this machine: run it on a login node of a SLURM cluster"
mkdir -p runs/logs

submitted=()
cancel() { # all or none: a later job that is refused takes the earlier ones with it
  if [[ $? -ne 0 && ${#submitted[@]} -gt 0 ]]; then
    scancel "${submitted[@]}"
    echo "slurm.sh: cancelled ${submitted[*]}" >&2
  fi
}
trap cancel EXIT

# submit NAME LOG ARGUMENTS [sbatch options]: ARGUMENTS are those of ovseg.study.jobs. Sets $id.
submit() {
  local name=$1 log=$2 arguments=$3
  shift 3
  # shellcheck disable=SC2016 # $PWD and $PATH are those of the job
  id=$(sbatch --job-name="ovseg-$name" --output="runs/logs/slurm-$name-$log.log" "$@" --parsable --chdir="$PWD" \
    --wrap='export PATH="$PWD/.venv/bin:$PATH"; exec .venv/bin/python -m ovseg.study.jobs '"$arguments")
  id=${id%%;*} # of "ID;CLUSTER"
  [[ "$id" =~ ^[0-9]+$ ]] || fail "sbatch answered '$id', not the number of a job"
  submitted+=("$id")
  echo "$id  ovseg-$name  ovseg.study.jobs $arguments"
}

submit shared %j "--jobs 1 train" "$@"
shared=$id
# A job that can no longer run, because one before it failed, is removed from the queue.
# shellcheck disable=SC2016 # $SLURM_ARRAY_TASK_ID is that of the job
submit part %A_%a '--jobs 1 --part "$SLURM_ARRAY_TASK_ID"/'"$parts" "$@" \
  --array="0-$((parts - 1))" --dependency="afterok:$shared" --kill-on-invalid-dep=yes
array=$id
# After the array's end, well or not: a part that ran out of time is finished here.
submit rest %j "--jobs 1" "$@" --dependency="afterok:$shared,afterany:$array" --kill-on-invalid-dep=yes
echo "logs: runs/logs/slurm-*.log; \`squeue --me\` shows the jobs, \`scancel ${submitted[*]}\` ends them"
