"""The stage `sources`: `python -m ovseg.study.sources`. It checks what it can before hours of work, and writes runs/sources.

    runs/sources/NOTEBOOK.ipynb     the notebooks without outputs, so that saving one in JupyterLab reruns nothing
    runs/sources/runs/NAME.json     the parameters that a run's result depends on: its stage reruns if one of them changes
    runs/sources/images.json        whether a run needs embeddings of whole training images, which `encode` then makes
"""

import contextlib
import shutil
import sys
from pathlib import Path

import nbformat

from .. import params
from ..benchmarks import datasets
from ..clip.config import check_weights
from ..data import shards
from ..data.files import write_json


def check_machine(runs):
    """Raises ParamsError if benchmarks, label maps of a supervised run or GPUs are missing, or a checkpoint is not of clip.model. What
    `scenes` makes, optional benchmarks, and the shards, which `prepare` looks for and untrained runs do not need, may be missing. runs:
    {name: params.Run}."""
    p = runs[params.DEFAULT].params
    for run in runs.values():
        params.device(p.device, run.params.train.processes)
    try:
        for name, settings in p.benchmarks.items():
            if not (settings.folder or settings.shards).startswith("data/prepared/"):
                with contextlib.suppress(datasets.NotHere if settings.optional else ()):
                    datasets.open_benchmark(name, settings)
        paths = []
        with contextlib.suppress(FileNotFoundError):
            paths = shards.expand(p.data.shards) if p.data.shards else []
        if p.clip.pretrained and Path(p.clip.pretrained).is_file():
            check_weights(p.clip.model, p.clip.pretrained)
    except (OSError, ValueError) as error:
        raise params.ParamsError(f"{error}") from None
    for name, run in runs.items():
        if paths and not p.clip.cache_images and len(paths) < (processes := run.params.train.processes):
            raise params.ParamsError(f"{name}: train.processes = {processes}: must be at most {len(paths)}, the number of shards")
        if paths and run.params.train.method == "supervised":
            label = p.benchmarks[run.params.supervised.labels].label
            if label not in next(shards.read_samples(paths[0]), {label: None}):
                raise params.ParamsError(f"{name}: it learns from label maps, but the samples of {paths[0]} hold no {label}")


def stripped(notebook):
    """A notebook with nothing but its cells' texts and tags: what JupyterLab, VS Code or Colab save besides does not matter here."""
    notebook.metadata, notebook.nbformat_minor = {}, 5  # Colab and VS Code write older ones
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {"tags": cell.metadata.get("tags", [])}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def main(folder=Path("runs/sources")):
    params.enter_project()
    runs = params.load_runs()
    check_machine(runs)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in sorted(Path("notebooks").glob("*.ipynb")):
        nbformat.write(stripped(nbformat.read(path, as_version=4)), folder / path.name)
    for name, run in runs.items():
        write_json(folder / f"runs/{name}.json", run.depends(), sort_keys=True)
    write_json(folder / "images.json", any(run.needs_images for run in runs.values()))


if __name__ == "__main__":
    try:
        main()
    except params.ParamsError as error:
        sys.exit(f"{error}")
