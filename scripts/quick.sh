#!/usr/bin/env bash
# `make quick`: run presets/quick.yaml in a folder of its own, quick/. params.yaml, dvc.lock and results/ of the study stay as they are.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p quick/models quick/results
rm -rf quick/{notebooks,ovseg,paper,scripts}
cp -R notebooks ovseg paper scripts dvc.yaml params.yaml .dvcignore quick
if git show HEAD:./params.yaml > quick/params.git 2> /dev/null; then # without an edit or another preset, where there is git
  mv quick/params.git quick/params.yaml
fi
cp -R models/clip quick/models
cp results/{pretrain,other_processor}.json quick/results
cd quick
[[ -d .dvc ]] || dvc init --quiet --no-scm
export PYTHONPATH=$PWD PYTHONUTF8=1
dvc commit --quiet --force pretrain # models/clip is made
python -m ovseg.params ../presets/quick.yaml
python scripts/repro.py "$@"
echo "Look at quick/results/REPORT.md, quick/results/figures and quick/runs/default.ipynb."
