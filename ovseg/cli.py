"""The command `ovseg`: segment pictures, evaluate a folder, check data, list models, publish one. Slow imports are inside the commands."""

import contextlib
import glob
import json
import os
import re
import sys
from pathlib import Path

import click
from safetensors import SafetensorError

from .schema import HUB, MODES

# RuntimeError: GPU out of memory; TypeError, AttributeError: a malformed segmenter.json
ERRORS = (OSError, ValueError, TypeError, AttributeError, LookupError, RuntimeError, MemoryError, ImportError, SafetensorError)


def one_line(error):
    """An error's message in one line."""
    message = error.format_message() if isinstance(error, click.UsageError) else str(error)
    return " ".join(message.split()) or type(error).__name__


@contextlib.contextmanager
def errors_exit(code, what="", kinds=ERRORS):
    """Context manager: an error ends the command with this exit code and one line on stderr, which starts with `what`."""
    try:
        yield
    except (click.exceptions.Exit, click.Abort):  # which are RuntimeErrors
        raise
    except (click.UsageError, *kinds) as error:
        failure = click.ClickException(what + one_line(error))
        failure.exit_code = code
        raise failure from None


class Commands(click.Group):
    """Its commands end with one line and exit code 2 on an error (usage errors, too), unless an inner errors_exit gives another code."""

    def invoke(self, context):
        with errors_exit(2):
            return super().invoke(context)


NAMES = {"type": lambda text: [name.strip() for name in os.fsencode(text).decode().split(",")], "metavar": "NAMES"}  # UTF-8 in any locale
THRESHOLD = click.option("--threshold", type=click.FloatRange(0, 1), help="Softmax score below which a pixel is background.")
MODEL = click.option("--model", metavar="FOLDER", help=f"A trained model, or {HUB}OWNER/NAME.  [default: models/default]")
CLIP = {"metavar": "NAME/TAG", "help": f"Instead, a CLIP without training: NAME/TAG of open_clip, NAME/FILE, {HUB}OWNER/NAME or a folder."}
DENSE = click.option("--dense", type=click.Choice(MODES), help="How to read the CLIP of --clip.  [default: sclip]")
SEED = click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0), help="Seed of the decoder.")
DEVICE = click.option("--device", default="auto", show_default=True, type=click.Choice(["auto", "cpu", "cuda"]))
CONTINUE = click.option("--continue", "resumed", is_flag=True, help="Skip pictures whose files are all there, of a run that was killed.")
FORCE = click.option("--force", is_flag=True, help="Overwrite existing files.")


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def main():
    """Open-vocabulary segmentation: name any classes, get a label map.

    Exit codes: 0 success; 1 some inputs failed, or check-data found a problem; 2 invalid arguments, nothing was written.
    """


@main.command()
@click.argument("pictures", nargs=-1, required=True)
@click.option("--classes", "names", required=True, **NAMES, help="What to look for, e.g. 'car;automobile,tree,road'.")
@click.option("--background", is_flag=True, help="Allow background: pixels that match no class.")
@click.option("--others", **NAMES, help="Other classes, reported as background; 'default': a built-in list.")
@THRESHOLD
@MODEL
@click.option("--clip", "clips", multiple=True, **CLIP)
@DENSE
@SEED
@DEVICE
@click.option("--refine", type=click.Choice(["pamr"]), help="Let label borders follow the edges of the image; slower.")
@click.option("-o", "--out", default="out", show_default=True, type=click.Path(file_okay=False, path_type=Path), help="Output folder.")
@CONTINUE
@FORCE
def segment(pictures, names, background, others, threshold, model, clips, dense, seed, device, refine, out, resumed, force):
    """Segment PICTURES: files, folders, or patterns in quotes.

    For each image, writes to --out: NAME.overlay.png, NAME.labels.png (class indices), NAME.json (class areas in percent). With several
    --clip: the same to a folder in --out for each, and NAME.comparison.png. To continue a killed run, add --continue to its command.
    """
    if threshold is not None and not (background and threshold >= 0):  # NaN passes click's range
        raise ValueError(f"--threshold {threshold}: must be between 0 and 1, and requires --background")
    if len(names) > 255:
        raise ValueError(f"--classes: {len(names)} names; a label map of one byte per pixel holds 255 and the background")
    os.environ["MPLBACKEND"] = "agg"  # no window
    from tqdm import tqdm

    from .data.images import read_image
    from .segmentation.names import besides, check_names
    from .study.figures import plan_outputs, write_comparison, write_segmentation

    pictures = gather(pictures)
    folders = [out / re.sub(r"[^\w.-]+", "-", clip).strip("-.") for clip in clips] if len(clips) > 1 else [out]
    if len({*folders}) < len(folders):
        raise ValueError("--clip: each must have another name")
    outputs = [plan_outputs(pictures, folder, force or resumed) for folder in folders]
    comparisons = plan_outputs(pictures, out, force or resumed, ["comparison.png"]) if len(clips) > 1 else {}
    names, others = check_names(names, background, besides(names) if others == ["default"] else others)
    segmenters, failed = [load(model, device, seed, clip, dense) for clip in clips or [None]], 0
    if refine:
        segmenters = [(s.with_unit(s.settings.unit, refine=refine), about | {"refine": refine}) for s, about in segmenters]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    files = {picture: [file for plan in (*outputs, comparisons) for file in plan.get(picture, ())] for picture in pictures}
    left = [picture for picture in pictures if not (resumed and all(file.exists() for file in files[picture]))]
    for picture in tqdm(left, "segment", disable=None):  # no bar where stderr is a file
        try:
            image = read_image(picture)
            for (segmenter, about), planned in zip(segmenters, outputs, strict=True):
                segmentation = segmenter.segment(image, names, background, threshold, others)
                write_segmentation(planned[picture], image, segmentation, {"picture": str(picture)} | about)
            if comparisons:
                write_comparison(*comparisons[picture], [planned[picture][0] for planned in outputs], clips)
        except ERRORS as error:
            failed += 1
            tqdm.write(f"{picture}: {one_line(error)}", file=sys.stderr)
    click.echo(f"{len(pictures) - failed} of {len(pictures)} segmented, in {out}", err=True)
    sys.exit(failed > 0)


def gather(inputs):
    """List the pictures named by files, folders and glob patterns (which give files with a suffix that Pillow reads, and name the others
    on stderr), each once, in the given order: a list of Path. Raises FileNotFoundError for an input without pictures."""
    from .data.images import is_picture, some

    pictures, left_out = {}, []
    for name in map(str, inputs):
        pattern, whole = (f"{glob.escape(name)}/*", True) if os.path.isdir(name) else (name, False)
        matches = [name] if os.path.isfile(name) else sorted(glob.glob(pattern, recursive=True, include_hidden=whole))
        files = [file for file in matches if file == name or is_picture(os.path.basename(file))]
        if not files:
            raise FileNotFoundError(f"{name}: no pictures found{', only: ' * bool(matches)}{some(matches)}")
        pictures |= {os.path.abspath(file): Path(file) for file in files}
        left_out += [file for file in matches if file not in files]
    if left_out:
        click.echo(f"{len(left_out)} left out, hidden or not read by Pillow: {some(left_out)}", err=True)
    return list(pictures.values())


def load(model, device, seed, clip=None, dense=None):
    """Open --model or one --clip: (Segmenter, a dict of what it is). Raises ValueError for options that exclude each other."""
    if clip == "":  # as of a shell's variable that is not set
        raise ValueError("--clip is empty: must be NAME/TAG of open_clip, NAME/FILE, hf-hub:OWNER/NAME or a folder")
    if clip and (model or seed) or dense and not clip:
        raise ValueError("--clip, with or without --dense, excludes --model and --seed" if clip else "--dense needs --clip")
    from .segmentation import published
    from .segmentation.segmenter import Segmenter

    if clip:
        dense = dense or "sclip"
        return Segmenter.untrained(*published.parse(clip), dense, device), {"clip": clip, "dense": dense}
    model = model or "models/default"
    with errors_exit(2, f"{model} cannot be loaded: "):
        opened = Segmenter.from_pretrained if model.startswith(HUB) else Segmenter.load
        return opened(model.removeprefix(HUB), device=device, seed=seed), {"model": model, "seed": seed}


@main.command()
@click.argument("folder")
@click.option("--classes", metavar="FILE", help="Another list of the classes, in place of classes.txt.")
@THRESHOLD
@MODEL
@click.option("--clip", **CLIP)
@DENSE
@SEED
@DEVICE
@click.option("--json", "file", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Also write the result to this file.")
@FORCE
def evaluate(folder, classes, threshold, model, clip, dense, seed, device, file, force):
    """Evaluate a model on a FOLDER of pictures with label maps: IoU of each class and mIoU, in percent.

    FOLDER holds images/, labels/ (pngs of the same names: indices of the classes, 255 ignored) and classes.txt: a line for
    each class, its name or several with ; between them (car; automobile).
    """
    from tabulate import tabulate

    from .benchmarks.datasets import FolderBenchmark
    from .benchmarks.evaluation import evaluate_folder
    from .data.files import write_json

    if file and file.exists() and not force:
        raise ValueError(f"{file} exists already; --force replaces it")
    benchmark = FolderBenchmark(Path(folder).resolve().name, folder, classes)
    if threshold is not None and not (benchmark.background and threshold >= 0):  # NaN passes click's range
        raise ValueError(f"--threshold requires a first class named 'background'; here it is {benchmark.classes[0]!r}")
    segmenter, about = load(model, device, seed, clip, dense)
    with errors_exit(1):
        result = evaluate_folder(segmenter, benchmark, threshold) | {"classes": classes} | about
        what = f"{clip}, {about['dense']}" if clip else f"{about['model']}, seed {seed}"
        click.echo(f"{result['pictures']} pictures, {what}, threshold {result['threshold']}; IoU in percent:")
        click.echo(tabulate([*result["iou"].items(), ("mIoU", result["miou"])], tablefmt="plain", floatfmt=".1f", missingval="-"))
        if file:
            write_json(file, result, ensure_ascii=False)


@main.command("check-data")
@click.argument("folders", nargs=-1)
@click.option("--clip", "clips", multiple=True, **(CLIP | {"help": "Also check that a CLIP can be opened, as in `ovseg segment`."}))
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(min=0), help="Images to check, per benchmark; 0: all.")
def check_data(folders, clips, limit):
    """Check the image-text pairs and benchmarks of params.yaml, or FOLDERS with images/, labels/ and classes.txt.

    Warnings report errors (exit code 1): unreadable files, ids without a class, too many bad samples. Notes report possible errors.
    """
    from .data_check import print_reports

    for clip in clips:
        segmenter, _ = load(None, "cpu", 0, clip)
        about = f"patch {segmenter.clip.patch}, d = {segmenter.clip.width}, windows of {segmenter.settings.window} px"
        click.echo(f"CLIP {clip}: trained at {segmenter.clip.image_size} px, {about}\n")
    sys.exit(print_reports(folders, limit) if folders or not clips else 0)


@main.command()
@click.option("--folder", default="models", show_default=True, help="Folder of trained models.")
def models(folder):
    """List trained models, sorted by mIoU in percent (mean over seeds, with the model's own unit)."""
    from tabulate import tabulate

    rows = []
    for file in sorted(Path(folder).glob("*/segmenter.json")):
        with errors_exit(2, f"{file.parent}: segmenter.json or result.json is broken: "):
            settings, result = json.loads(file.read_text(encoding="utf-8")), file.with_name("result.json")
            miou = json.loads(result.read_text(encoding="utf-8"))["miou"] if result.is_file() else {}
            own = {name: by_unit[unit] for name, by_unit in miou.items() if (unit := settings["segment"]["unit"]) in by_unit}
            seeds = len(list(file.parent.glob("seeds/*/decoder.safetensors")))
            read_by = ", ".join(filter(None, (settings["clip"][key] for key in ("model", "pretrained", "dense"))))
            rows.append({"model": file.parent, "seeds": seeds, "CLIP": read_by} | own)
    if not rows:
        raise FileNotFoundError(f"{folder}: no trained models here: run `make repro`, or use --folder quick/models after `make quick`")
    rows.sort(key=lambda row: -sum(list(row.values())[3:]))  # over benchmarks
    click.echo(tabulate(rows, "keys", tablefmt="plain", floatfmt=".1f", missingval="-"))


@main.command()
@click.argument("model")
@click.argument("out")
@click.option("--push", "repository", metavar="OWNER/NAME", help="Upload OUT to this repository of the Hugging Face Hub.")
@click.option("--private", is_flag=True, help="Create the repository as private.")
def publish(model, out, repository, private):
    """Export a trained MODEL (e.g. models/default) to the folder OUT for sharing.

    OUT holds what Segmenter.from_pretrained needs, and a model card. If OUT exists from an earlier export, --push uploads it unchanged.
    """
    from .segmentation import hub

    if private and not repository:
        raise ValueError("--private needs --push")
    if not (repository and all((Path(out) / name).is_file() for name in ("README.md", "segmenter.json"))):
        hub.write_model(model, out, repository)
    click.echo(out)
    if repository:
        with errors_exit(1, f"{out} was not uploaded to {repository}: ", (Exception,)):  # of huggingface_hub's HTTP library
            click.echo(hub.push(out, repository, private))


@main.command()
@click.argument("source", type=click.Path(exists=True))
@click.argument("out", type=click.Path())
@click.option("--columns", nargs=2, default=("path", "caption"), show_default=True, metavar="PATH CAPTION", help="Columns of a table.")
@click.option("--images", type=click.Path(file_okay=False, exists=True), help="Folder of the paths in SOURCE; by default, SOURCE's own.")
def pack(source, out, columns, images):
    """Make shards for training, in the new folder OUT, from pictures and captions.

    SOURCE is a folder with NAME.txt beside each picture, a csv, tsv, jsonl or parquet table, or COCO's captions json. Unusable pairs are
    left out and named, with exit code 1.
    """
    from .data import pack as packing

    with errors_exit(2, f"{source}: "):
        pairs, bad = packing.pack(source, out, columns, images)
    click.echo(f"{pairs} pairs in {out}")
    for kind, paths in bad.items():
        click.echo(f"left out: {len(paths)} {kind}: {', '.join(paths[:5])}{', ...' * (len(paths) > 5)}", err=True)
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
