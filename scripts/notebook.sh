#!/usr/bin/env bash
# Execute a notebook: scripts/notebook.sh SOURCE TARGET [-r PARAMETER VALUE ...]
#
# OVSEG_LAUNCH is put before the command, to run it on another machine that shares this folder (docs/clusters.md):
#   OVSEG_LAUNCH="srun --gres=gpu:1" make repro JOBS=32
set -euo pipefail
export PYTHONUTF8=1 # whatever the locale
${OVSEG_LAUNCH-} python scripts/execute.py "$@"
for ((i = 0; i < 60; i++)); do # a shared file system may show a file of another machine late
  [[ -e "$2" ]] && exit
  sleep 1
done
echo "$2 was written, but it is not visible here after 60 s: is the folder shared?" >&2
exit 1
