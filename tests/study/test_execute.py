"""Executing notebooks: what a file keeps of progress bars."""

import nbformat
import pytest

from ovseg.study import execute

BARS = """
import sys, time
from tqdm import tqdm
print("before")
for _ in tqdm(range(40), "first bar", mininterval=0):
    time.sleep(0.002)
print("between")
for _ in tqdm(range(3), "second bar", mininterval=0):
    pass
value
"""


def notebook(path, *codes):
    cells = [nbformat.v4.new_code_cell(code) for code in codes]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)
    return str(path)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("", ""),
        ("a\nb\n", "a\nb\n"),
        ("\r  0%\r 50%\r100%\n", "100%\n"),
        ("\rdone: 0%\n\rnext: 0%\rnext: 9%  \nlast", "done: 0%\nnext: 9%\nlast"),
        ("windows\r\nlines\r\n", "windows\nlines\n"),
    ],
)
def test_a_text_is_what_a_terminal_shows_in_the_end(text, expected):
    assert execute.at_the_end(text) == expected


def test_a_bar_that_ended_leaves_one_line(tmp_path, capsys):
    target = tmp_path / "sub/out.ipynb"
    execute.main([notebook(tmp_path / "in.ipynb", 'value = ""', BARS), str(target), "-r", "value", "a=b, c"])
    outputs = nbformat.read(target, as_version=4).cells[-1].outputs
    streams = {output.name: output.text for output in outputs if output.output_type == "stream"}
    assert [output.output_type for output in outputs].count("stream") == 2
    assert streams["stdout"] == "before\nbetween\n" and "\r" not in target.read_text() and "\\r" not in target.read_text()
    lines = streams["stderr"].splitlines()
    assert [line.split(":")[0] for line in lines] == ["first bar", "second bar"] and all("100%" in line for line in lines)
    assert outputs[-1].data["text/plain"] == "'a=b, c'"  # a parameter that papermill would take for YAML
    assert capsys.readouterr().err.count("first bar") > 3  # the terminal sees it move


def test_a_cell_that_fails_leaves_a_tidy_notebook_and_is_told(tmp_path):
    target = tmp_path / "out.ipynb"
    with pytest.raises(Exception, match="told"):
        execute.execute(notebook(tmp_path / "in.ipynb", "value = 1", BARS, "raise ValueError('told')"), str(target), {})
    found = nbformat.read(target, as_version=4)
    assert any(output.output_type == "error" for output in found.cells[-1].outputs) and "\\r" not in target.read_text()
