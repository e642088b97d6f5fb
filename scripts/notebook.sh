#!/usr/bin/env bash
# Run a notebook by papermill: scripts/notebook.sh SOURCE OUTPUT [-r PARAMETER VALUE ...]. Progress bars pass through to the terminal.
set -eu
mkdir -p "$(dirname "$2")"
exec papermill --log-level ERROR --no-progress-bar --stderr-file - "$@"
