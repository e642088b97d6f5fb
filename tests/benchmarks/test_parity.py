"""The evaluation of the paper's preset, beside MMSegmentation's restated: its pipeline by OpenCV, slide_inference, intersect_and_union.

Only what a window's pixel embeddings are is ours in both: windows are encoded, decoded and grouped into units by the Segmenter.
"""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from ovseg import params
from ovseg.benchmarks.datasets import open_benchmark
from ovseg.benchmarks.evaluation import Encoded, evaluate, score_pictures
from ovseg.benchmarks.miou import mean
from ovseg.schema import Benchmark
from ovseg.segmentation.segmenter import Segmenter

pytestmark = pytest.mark.usefixtures("one_thread")

PRESET = params.load(path=Path(__file__).parents[2] / "presets/paper.yaml").segment
SIDE, LONGEST, STRIDE = 48, 219, 24  # of the preset's 448, 2048 and 224
SIZES = [(60, 91), (120, 71), (48, 48), (49, 220), (33, 40)]  # of pictures; a longer one would have windows of less than SIDE
PLACES = {
    "voc": ("JPEGImages/{}.jpg", "SegmentationClass/{}.png", "ImageSets/Segmentation/val.txt"),
    "context": ("JPEGImages/{}.jpg", "SegmentationClassContext/{}.png", "ImageSets/SegmentationContext/val.txt"),
    "coco_stuff": ("images/val2017/{}.jpg", "annotations/val2017/{}_labelTrainIds.png", None),
    "cityscapes": ("leftImg8bit/val/ulm/{}_leftImg8bit.png", "gtFine/val/ulm/{}_gtFine_labelTrainIds.png", None),
    "ade20k": ("images/validation/{}.jpg", "annotations/validation/{}.png", None),
}
PLACES |= {"voc20": PLACES["voc"], "context59": PLACES["context"], "coco_object": PLACES["coco_stuff"]}
CLASSES = {"voc": 21, "voc20": 20, "context": 60, "context59": 59, "coco_object": 81, "coco_stuff": 171, "cityscapes": 19, "ade20k": 150}
WITH_BACKGROUND = ("voc", "context", "coco_object")
REDUCED = ("voc20", "context59", "ade20k")  # reduce_zero_label


# ---- MMSegmentation, restated


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
    first = segmenter.settings.averaged == "softmax"  # as in TCL's encode_decode; else last, as in SCLIP's postprocess_result
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


def load_annotations(path, name):
    """What a label map's values mean: indices of classes, and 255."""
    labels = np.asarray(Image.open(path)).copy()
    if name in REDUCED:
        labels[labels == 0] = 255
        labels = labels - 1
        labels[labels == 254] = 255
    if name == "coco_object":  # GroupViT's: the first 80 of COCO-Stuff's, behind the background, which is all else
        labels = np.array([*range(1, 81), *[0] * 176], np.uint8)[labels]
    return labels


def intersect_and_union(predicted, truth, classes):
    """Pixels of each class: in both, in either, each (classes,), by histograms."""
    predicted, truth = torch.from_numpy(predicted)[truth != 255], torch.from_numpy(truth)[truth != 255]
    both, one, other = (
        torch.histc(found.float(), classes, 0, classes - 1).double() for found in (predicted[predicted == truth], predicted, truth)
    )
    return both, one + other - both


# ---- tiny folders


def stored(labels, name):
    """As a file of the benchmark holds indices of classes and 255."""
    if name in REDUCED:
        return np.where(labels == 255, 0, labels + 1)
    return np.where(labels == 0, 100, labels - 1) if name == "coco_object" else labels


def write_pictures(folder, name):
    """Pictures of SIZES in a benchmark's layout. Returns their paths, and those of their label maps."""
    image, labels, listing = PLACES[name]
    found = [(folder / image.format(f"p{index}"), folder / labels.format(f"p{index}")) for index in range(len(SIZES))]
    for index, (path, beside) in enumerate(found):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.parent.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(index)
        coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8))
        coarse.resize(SIZES[index][::-1], Image.Resampling.BICUBIC).save(path)
    if listing:
        (folder / listing).parent.mkdir(parents=True)
        (folder / listing).write_text("".join(f"p{index}\n" for index in range(len(SIZES))))
    return found


@pytest.mark.parametrize("averaged", ["softmax", "cosine"])
@pytest.mark.parametrize("name", CLASSES)
def test_both_give_the_same_iou_to_the_last_digit(clip, decoder, tmp_path, name, averaged):
    files, background = write_pictures(tmp_path, name), name in WITH_BACKGROUND
    assert PRESET.resize == "opencv-bilinear" and PRESET.averaged == "softmax"
    settings = PRESET.model_copy(
        update={"short_side": SIDE, "window": SIDE, "stride": STRIDE, "meta_points": 9, "precision": "float32", "averaged": averaged}
    )
    segmenter = Segmenter(clip, decoder, settings)
    generator = torch.Generator().manual_seed(0)
    classes = F.normalize(torch.randn(CLASSES[name] - background, clip.width, generator=generator), dim=1)
    threshold, totals, expected = 0.5 if background else None, torch.zeros(2, CLASSES[name], dtype=torch.float64), []
    for index, (image, labels) in enumerate(files):
        predicted, rng = predict(image, segmenter, classes, threshold), np.random.default_rng(index)
        noise = rng.integers(0, CLASSES[name], predicted.shape)
        truth = np.where(rng.random(predicted.shape) < 0.4, noise, predicted)
        if name != "coco_object":  # which ignores nothing
            truth[:7, :9] = 255
        Image.fromarray(stored(truth, name).astype(np.uint8)).save(labels)
        assert np.array_equal(load_annotations(labels, name), truth)
        totals += torch.stack(intersect_and_union(predicted, truth, CLASSES[name]))
        expected.append(predicted)
    ious = [100 * both / either if either else None for both, either in totals.T.tolist()]
    assert sum(iou is not None and iou > 30 for iou in ious) > 3

    encoded = Encoded(open_benchmark(name, Benchmark(layout=name, folder=str(tmp_path))), classes, None, threshold)
    for predicted, (_, _, ((scores,),)) in zip(expected, score_pictures([encoded], [segmenter]), strict=True):
        assert np.array_equal(encoded.labels(scores, segmenter).numpy(), predicted)
    found = evaluate({"it": segmenter}, [encoded])[name]["it"]
    assert list(found.values()) == ious
    known = [iou for iou in ious if iou is not None]
    assert mean(found) == sum(known) / len(known)
