"""Execute a notebook: `python -m ovseg.study.execute SOURCE OUTPUT [-r PARAMETER VALUE ...]`, by papermill.

Progress bars are shown live in the terminal. In the file, a finished bar leaves one line.
"""

import argparse
import logging
import sys
from pathlib import Path

import nbformat


def at_the_end(text):
    """What a terminal finally shows of a text with carriage returns: the last version of each line."""
    lines = []
    for line in text.replace("\r\n", "\n").split("\n"):
        drawn = [part for part in line.split("\r") if part]
        lines.append(drawn[-1].rstrip() if len(drawn) > 1 else line.strip("\r"))
    return "\n".join(lines)


def tidy(notebook):
    """Join each cell's outputs to one stream, at the position of the first, and keep what a terminal finally shows. In place."""
    for cell in notebook.cells:
        joined = {}
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                first = joined.setdefault(output.name, output)
                if first is not output:
                    first.text += output.text
        for output in joined.values():
            output.text = at_the_end(output.text)
        if joined:
            streams = {id(output) for output in joined.values()}
            cell.outputs = [output for output in cell.outputs if output.output_type != "stream" or id(output) in streams]


def execute(source, target, parameters):
    """Execute a notebook into a file, which is tidied even if a cell failed. Raises what papermill raises."""
    import papermill  # takes a second

    try:
        papermill.execute_notebook(source, target, parameters, progress_bar=False, stderr_file=sys.stderr)
    finally:
        if Path(target).is_file():
            notebook = nbformat.read(target, as_version=4)
            tidy(notebook)
            nbformat.write(notebook, target)


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m ovseg.study.execute", description="Execute a notebook by papermill.")
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("-r", nargs=2, action="append", default=[], metavar=("PARAMETER", "VALUE"), help="a text for the cell `parameters`")
    options = parser.parse_args(arguments)
    logging.getLogger("papermill").setLevel(logging.ERROR)
    Path(options.target).parent.mkdir(parents=True, exist_ok=True)
    execute(options.source, options.target, dict(options.r))


if __name__ == "__main__":
    main()
