"""Execute a notebook by papermill; scripts/notebook.sh calls this. Progress bars are shown live; in the file each leaves one line."""

import argparse
import logging
import sys
from pathlib import Path

import nbformat
import papermill
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

parser = argparse.ArgumentParser(prog="scripts/notebook.sh")
parser.add_argument("source")
parser.add_argument("target", type=Path)
parser.add_argument("-r", nargs=2, action="append", default=[], metavar=("PARAMETER", "VALUE"), help="a text for the cell `parameters`")
options = parser.parse_args()
logging.getLogger("papermill").setLevel(logging.ERROR)
options.target.parent.mkdir(parents=True, exist_ok=True)
part = options.target.with_suffix(".part.ipynb")
try:
    shown = {"progress_bar": False, "stderr_file": sys.stderr}
    papermill.execute_notebook(options.source, part, dict(options.r), kernel_name="python3", language="python", **shown)
finally:  # a failed notebook is worth reading, too
    if part.is_file():
        notebook, _ = CoalesceStreamsPreprocessor().preprocess(nbformat.read(part, as_version=4), {})
        nbformat.write(notebook, options.target)
        part.unlink()
