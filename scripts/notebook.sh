#!/usr/bin/env bash
# Execute a notebook: scripts/notebook.sh SOURCE OUTPUT [-r PARAMETER VALUE ...]. Progress bars pass through to the terminal.
exec python -m ovseg.study.execute "$@"
