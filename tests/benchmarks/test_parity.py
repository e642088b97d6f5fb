"""The evaluation of the paper's preset, beside MMSegmentation's restated: its pipeline by OpenCV, slide_inference, intersect_and_union.

Only what a window's pixel embeddings are is ours in both: windows are encoded, decoded and grouped into units by the Segmenter.
"""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from handmade import COUNTS, PLACES, REDUCED, WITH_BACKGROUND, files
from PIL import Image
from tiny import save

from ovseg import params
from ovseg.benchmarks.datasets import open_benchmark
from ovseg.benchmarks.evaluation import Encoded, evaluate
from ovseg.benchmarks.miou import mean
from ovseg.schema import Benchmark
from ovseg.segmentation.segmenter import Segmenter

SIDE, LONGEST, STRIDE = 48, 219, 24  # of the preset's 448, 2048 and 224
SIZES = [(60, 91), (120, 71), (48, 48), (49, 220), (33, 40)]  # of pictures; a longer one would have windows of less than SIDE


def load(path):
    """LoadImageFromFile and Resize(scale=(LONGEST, SIDE), keep_ratio=True): (H, W, 3) RGB."""
    image = cv2.imread(str(path))[..., ::-1]
    height, width = image.shape[:2]
    factor = min(LONGEST / max(height, width), SIDE / min(height, width))
    size = int(width * factor + 0.5), int(height * factor + 0.5)
    return cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_LINEAR), (height, width)


def slide_inference(image, encode_decode, channels):
    """Windows' logits (channels, h, w), added up and divided by how many windows a pixel is in. image (H, W, 3)."""
    height, width = image.shape[:2]
    rows, columns = (max(side - SIDE + STRIDE - 1, 0) // STRIDE + 1 for side in (height, width))
    logits, counted = torch.zeros(channels, height, width), torch.zeros(height, width)
    for row in range(rows):
        for column in range(columns):
            bottom, right = min(row * STRIDE + SIDE, height), min(column * STRIDE + SIDE, width)
            top, left = max(bottom - SIDE, 0), max(right - SIDE, 0)
            logits[:, top:bottom, left:right] += encode_decode(image[top:bottom, left:right])
            counted[top:bottom, left:right] += 1
    assert counted.min() >= 1
    return logits / counted


def predict(path, segmenter, classes, threshold):
    """The label map at the picture's own size. threshold: None without a background, which is class 0."""
    image, size = load(path)
    first = segmenter.settings.averaged == "softmax"  # the order of TCL's encode_decode; else last, as in SCLIP's postprocess_result
    scale = segmenter.settings.scale

    def encode_decode(window):
        pixels = segmenter.describe(segmenter.embed(segmenter.encode(window[None])))[0]
        cosines = torch.stack([(pixels * name[:, None, None]).sum(0) for name in classes])
        scores = torch.softmax(cosines * scale, 0) if first else cosines
        return F.interpolate(scores[None], window.shape[:2], mode="bilinear")[0]

    logits = slide_inference(image, encode_decode, len(classes))
    logits = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    scores = logits if first else torch.softmax(logits * scale, 0)
    if threshold is not None:
        scores = torch.cat([torch.full((1, *size), threshold), scores])
    return scores.argmax(0).numpy()


def intersect_and_union(predicted, truth, classes):
    """Pixels of each class: in both, in either, each (classes,), by histograms."""
    predicted, truth = torch.from_numpy(predicted)[truth != 255], torch.from_numpy(truth)[truth != 255]
    both, one, other = (
        torch.histc(part.float(), classes, 0, classes - 1).double() for part in (predicted[predicted == truth], predicted, truth)
    )
    return both, one + other - both


def stored(labels, name):
    """How a file of the benchmark holds indices of classes and 255."""
    if name in REDUCED:
        return np.where(labels == 255, 0, labels + 1)
    return np.where(labels == 0, 100, labels - 1) if name == "coco_object" else labels


def write_pictures(folder, name):
    """Pictures of SIZES in a benchmark's layout. Returns their paths, and those of their label maps."""
    keys, rng = [f"p{index}" for index in range(len(SIZES))], np.random.default_rng(0)
    paths = [(folder / image, folder / labels) for image, labels in files(name, keys)]
    for (path, _), size in zip(paths, SIZES, strict=True):
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        save(path, coarse.resize(size[::-1], Image.Resampling.BICUBIC))
    if listing := PLACES[name][0]:
        save(folder / listing.format("val"), "\n".join(keys))
    return paths


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    """`segment` of the paper's preset for the sizes here."""
    root, path = Path(__file__).parents[2], tmp_path_factory.mktemp("preset") / "params.yaml"
    shutil.copy(root / "params.yaml", path)
    params.apply_preset(root / "presets/paper.yaml", path)
    segment = params.load(path=path).segment
    assert segment.resize == "opencv-bilinear" and segment.averaged == "softmax"
    return segment.model_copy(update={"short_side": SIDE, "window": SIDE, "stride": STRIDE, "meta_points": 9, "precision": "float32"})


@pytest.mark.parametrize("averaged", ["softmax", "cosine"])
@pytest.mark.parametrize("name", COUNTS)
def test_both_give_the_same_iou_to_the_last_digit(clip, decoder, preset, tmp_path, name, averaged):
    paths, background = write_pictures(tmp_path, name), name in WITH_BACKGROUND
    segmenter = Segmenter(clip, decoder, preset.model_copy(update={"averaged": averaged}))
    torch.manual_seed(0)
    classes = F.normalize(torch.randn(COUNTS[name] - background, clip.width), dim=1)
    threshold, totals, expected = 0.5 if background else None, torch.zeros(2, COUNTS[name], dtype=torch.float64), []
    for index, (image, labels) in enumerate(paths):
        predicted, rng = predict(image, segmenter, classes, threshold), np.random.default_rng(index)
        noise = rng.integers(0, COUNTS[name], predicted.shape)
        truth = np.where(rng.random(predicted.shape) < 0.4, noise, predicted)
        if name != "coco_object":  # which ignores nothing
            truth[:7, :9] = 255
        save(labels, stored(truth, name))
        totals += torch.stack(intersect_and_union(predicted, truth, COUNTS[name]))
        expected.append(predicted)
    ious = [100 * both / either if either else None for both, either in totals.T.tolist()]
    assert sum(value is not None and value > 30 for value in ious) > 3

    encoded = Encoded(open_benchmark(name, Benchmark(layout=name, folder=str(tmp_path))), classes, None, threshold)
    segmenter.embed_classes = lambda names: classes
    for predicted, (_, image, _) in zip(expected, encoded.benchmark, strict=True):
        assert np.array_equal(segmenter.segment(image, encoded.benchmark.named, background, threshold).labels, predicted)
    iou, known = evaluate({"it": segmenter}, [encoded])[name]["it"], [value for value in ious if value is not None]
    assert list(iou.values()) == ious and mean(iou) == sum(known) / len(known)
