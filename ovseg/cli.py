"""The command `ovseg`: segment pictures, evaluate a folder, check data, list models, publish one.

Exit codes: 0 success; 1 some pictures failed, the evaluation failed, or data look wrong; 2 wrong usage, found before any work. Errors are
one line on stderr. Slow imports happen inside the commands.
"""

import json
import sys
from pathlib import Path

import click

HUB = "hf-hub:"  # prefix of --model for a published model, as in open_clip and timm
MODEL = click.option("--model", default="models/mgca", show_default=True, metavar="FOLDER", help=f"A trained model, or {HUB}OWNER/NAME.")
SEED = click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Which of its trainings.")
DEVICE = click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
FORCE = click.option("--force", is_flag=True, help="Replace files that are there already.")
COMMON = "default"  # value of --others for the common list


class WrongUsage(click.ClickException):
    """An error found before any work starts."""

    exit_code = 2


def _share(context, parameter, value):
    if value is not None and not 0 <= value <= 1:  # NaN too
        raise click.BadParameter(f"{value:g} is not in the range 0<=x<=1.")
    return value


def _names(context, parameter, value):
    return None if value is None else [name.strip() for name in value.split(",")]


def _line(error):
    return " ".join(str(error).split()) or type(error).__name__


THRESHOLD = click.option(
    "--threshold", type=float, callback=_share, help="Softmax score, 0 to 1, below which a pixel is background. Default: the model's own."
)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def commands():
    """Open-vocabulary segmentation: name any classes, get a label map.

    Exit codes: 0 all done, 1 some pictures failed or data look wrong, 2 wrong usage.
    """


@commands.command()
@click.argument("pictures", nargs=-1, required=True)
@click.option("--classes", "names", required=True, callback=_names, metavar="NAMES", help="What to look for, e.g. 'car,tree,road'.")
@click.option("--background", is_flag=True, help="Pixels may belong to no class.")
@click.option(
    "--others",
    callback=_names,
    metavar="NAMES",
    help=f"What else there is, reported as background, e.g. 'sky,grass'; '{COMMON}': a common list, which one class with --background "
    "has anyway.",
)
@THRESHOLD
@MODEL
@SEED
@DEVICE
@click.option("-o", "--out", default="out", show_default=True, metavar="FOLDER", help="Where to write.")
@FORCE
def segment(pictures, names, background, others, threshold, model, seed, device, out, force):
    """Segment PICTURES: files, folders, or patterns in quotes.

    Writes of each, into --out: NAME.overlay.png to look at, NAME.labels.png, whose values are indices of the classes, and NAME.json, the
    areas in percent.
    """
    from .study import batch

    if threshold is not None and not background:
        raise WrongUsage("--threshold goes with --background")
    try:
        jobs = batch.plan_files(batch.gather(pictures), out, force)
        call = _call(names, background, threshold, others)
        segmenter = _load(model, device, seed)
        Path(out).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise WrongUsage(_line(error)) from None
    failed = _segment_all(jobs, segmenter, call, {"model": model, "seed": seed})
    done = len(jobs) - failed
    click.echo(f"{done} of {len(jobs)} segmented, in {out}" if failed else f"{done} segmented, in {out}", err=True)
    sys.exit(1 if failed else 0)


def _call(names, background, threshold, others):
    """The arguments of Segmenter.segment. Raises ValueError on bad names."""
    import matplotlib

    matplotlib.use("agg")  # no window
    from .segmentation.names import besides, check_names
    from .study.pictures import check_count

    others = besides(names) if others == [COMMON] else others
    check_names(names, background, others)
    check_count(len(names) + (background or others is not None))
    return {"names": names, "background": background, "threshold": threshold, "others": others}


def _segment_all(jobs, segmenter, call, made_with):
    """Segment pictures and write the results; one line on stderr for each failure. Returns the number of failures."""
    from tqdm import tqdm

    from .study import pictures

    failed = 0
    for job in tqdm(jobs, "segment", disable=None):  # no bar where stderr is a file
        try:
            image = pictures.read_picture(job.picture)
            pictures.write_segmentation(job, image, segmenter.segment(image, **call), made_with)
        except (OSError, ValueError, MemoryError, RuntimeError) as error:  # RuntimeError: GPU out of memory
            failed += 1
            tqdm.write(f"{job.picture}: {_line(error)}", file=sys.stderr)
    return failed


def _load(model, device, seed):
    """Load the Segmenter of --model. Raises OSError or ValueError."""
    from safetensors import SafetensorError

    from .segmentation.segmenter import Segmenter

    try:
        if model.startswith(HUB):
            return Segmenter.from_pretrained(model.removeprefix(HUB), device=device, seed=seed)
        return Segmenter.load(model, device, seed)
    except (KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{model} cannot be loaded: {error}") from None


@commands.command()
@click.argument("folder")
@THRESHOLD
@MODEL
@SEED
@DEVICE
@click.option("--json", "file", metavar="FILE", help="Write the result there, too.")
@FORCE
def evaluate(folder, threshold, model, seed, device, file, force):
    """Evaluate a model on a FOLDER of pictures with label maps.

    FOLDER holds images/, labels/ (a png of the same name, whose values are indices of the classes, 255 ignored) and classes.txt (a name a
    line, "background" first if there is one). Prints IoU by class and mIoU, in percent.
    """
    from .study.folder import evaluate_folder, open_folder

    if file and Path(file).is_dir():
        raise WrongUsage(f"--json: {file} is a folder; expected a file to write")
    if file and Path(file).exists() and not force:
        raise WrongUsage(f"{file} exists already; --force replaces it")
    try:
        benchmark = open_folder(folder, threshold)
        segmenter = _load(model, device, seed)
    except (OSError, ValueError) as error:
        raise WrongUsage(_line(error)) from None
    try:
        result = evaluate_folder(segmenter, benchmark, threshold) | {"model": model, "seed": seed}
        if file:
            Path(file).parent.mkdir(parents=True, exist_ok=True)
            Path(file).write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except (OSError, ValueError, MemoryError, RuntimeError) as error:
        raise click.ClickException(_line(error)) from None
    of_background = "" if result["threshold"] is None else f", threshold {result['threshold']:g}"
    rows = [*result["iou"].items(), ("mIoU", result["miou"])]
    width = max(len(name) for name, _ in rows)
    click.echo(f"IoU in percent, {result['pictures']} pictures, {model}, seed {seed}{of_background}")
    for name, value in rows:
        click.echo(f"{name:{width}}  {'  -' if value is None else f'{value:5.1f}'}")


@commands.command("check-data")
@click.argument("folders", nargs=-1)
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(min=0), help="Pairs, and pictures a benchmark; 0: all.")
@click.option(
    "--model", metavar="FOLDER", help="Compare its predictions with the labels of 20 pictures, too: do shifted labels fit better?"
)
@SEED
@DEVICE
def check_data(folders, limit, model, seed, device):
    """Count what is in the image-text pairs and benchmarks of params.yaml, or in FOLDERS as `evaluate` takes them.

    Prints sizes, captions, and how often each label id occurs, with its class. Warnings are of what is wrong: files that cannot be read,
    ids that no class has, labels that do not fit a model's predictions. Notes are of what may be. Exit code 1 if there is a warning.
    """
    from .study import data_check
    from .study.folder import open_folder

    try:
        segmenter = model and _load(model, device, seed)
        found = data_check.Data(benchmarks=[open_folder(folder) for folder in folders]) if folders else data_check.open_study()
    except (OSError, ValueError) as error:
        raise WrongUsage(_line(error)) from None
    warned = False
    for text, warnings, notes in data_check.check_data(found, limit, segmenter):
        lines = [text, *(f"warning: {warning}" for warning in warnings), *(f"note: {note}" for note in notes)]
        click.echo("\n  ".join(lines) + "\n")
        warned |= bool(warnings)
    sys.exit(1 if warned else 0)


@commands.command()
@click.option("--folder", default="models", show_default=True, help="Where models are.")
def models(folder):
    """List trained models, how good they are, and their CLIP.

    mIoU in percent where they were evaluated, the mean over seeds by the unit of the model; the best first.
    """
    from tabulate import tabulate

    from .study.models import trained

    try:
        found = trained(folder)
    except (OSError, ValueError) as error:
        raise WrongUsage(_line(error)) from None
    benchmarks = list(dict.fromkeys(name for model in found for name in model.miou))
    rows = [[model.folder, *(model.miou.get(name) for name in benchmarks), len(model.seeds), model.clip] for model in found]
    click.echo(tabulate(rows, ["model", *benchmarks, "seeds", "CLIP"], tablefmt="plain", floatfmt=".1f", missingval="-"))


@commands.command()
@click.argument("model")
@click.argument("out")
@click.option("--push", "repository", metavar="OWNER/NAME", help="Upload it to this repository of the Hugging Face Hub, too.")
@click.option("--private", is_flag=True, help="Should the repository be made, nobody else sees it.")
def publish(model, out, repository, private):
    """Write the trained MODEL, e.g. models/mgca, to the folder OUT, to be handed on.

    OUT holds all that Segmenter.from_pretrained needs, and a model card made of the model's result.
    """
    try:
        from .study import publish
    except ModuleNotFoundError as error:
        raise WrongUsage(f"{error.name} is not installed: `publish` needs the extra `study`") from None
    if private and not repository:
        raise WrongUsage("--private goes with --push")
    try:
        if not (repository and (Path(out) / "README.md").is_file()):  # already written: uploaded as it is
            publish.write_model(model, out, repository)
    except (OSError, ValueError) as error:
        raise WrongUsage(_line(error)) from None
    click.echo(out)
    if repository:
        try:
            click.echo(publish.push(out, repository, private))
        except Exception as error:  # includes errors of huggingface_hub's HTTP library
            raise click.ClickException(f"{repository}: {_line(error)}; run the command again to upload {out}") from None


def main(arguments=None):
    """Run the command line. Exits with a code from the module docstring, or 130 if interrupted."""
    try:
        sys.exit(commands.main(arguments, prog_name="ovseg", standalone_mode=False))
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except click.ClickException as error:
        click.echo(f"ovseg: {error.format_message()}", err=True)
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("ovseg: interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
