"""The whole protocol on one picture, by loops: templates, resizing, windows, units, averages, background, label map, IoU."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import bilinear, changed, picture, reading

from ovseg.benchmarks import datasets, evaluation
from ovseg.benchmarks.encoding import encode_benchmarks
from ovseg.segmentation.segmenter import Segmenter

pytestmark = pytest.mark.usefixtures("one_thread")

SIDE, WINDOW, STRIDE, POINTS = 32, 32, 16, 4
CLASSES = ["background", "cat", "sofa", "tall tree"]


def unit(vector):
    return vector / np.sqrt((vector**2).sum())


def class_embeddings(clip, templates):
    found = []
    for name in CLASSES[1:]:
        prompts = [unit(clip.encode_text([template.replace("{}", name)])[0].double().numpy()) for template in templates]
        found.append(unit(sum(prompts) / len(prompts)))
    return found


def starts(length):
    """The window slides by the stride; the last one is pulled back inside."""
    places, place = [], 0
    while place + WINDOW < length:
        places.append(place)
        place += STRIDE
    return [*places, max(0, length - WINDOW)]


def recognised(embeddings, meta_points):
    """What each pixel is recognised by, {(y, x): vector}: itself, or the mean of those that joined its meta-point."""
    height, width = embeddings.shape[1:]
    pixels = {(y, x): embeddings[:, y, x] for y in range(height) for x in range(width)}
    if not meta_points:
        return pixels
    side = round(POINTS**0.5)
    sampled = [pixels[int((i + 0.5) * height / side), int((j + 0.5) * width / side)] for i in range(side) for j in range(side)]
    joined = {place: int(np.argmax([unit(pixel) @ unit(point) for point in sampled])) for place, pixel in pixels.items()}
    means = {k: np.mean([pixels[place] for place in joined if joined[place] == k], 0) for k in set(joined.values())}
    return {place: means[k] for place, k in joined.items()}


@torch.no_grad()
def label_map(image, clip, decoder, settings, threshold):
    """Labels of one PIL image, (H, W): 0 the background, then CLASSES."""
    names = class_embeddings(clip, settings.templates)
    scale = SIDE / min(image.size)
    resized = np.asarray(image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC))
    height, width = resized.shape[:2]
    total, cover = np.zeros((len(names), height, width)), np.zeros((height, width))
    for top in starts(height):
        for left in starts(width):
            window = resized[top : top + WINDOW, left : left + WINDOW]
            embeddings = decoder(clip.encode_dense(window[None]))[0].double().numpy()  # d, h, w
            grid = recognised(embeddings, settings.unit == "meta-point")
            for index, name in enumerate(names):
                cosines = np.zeros(embeddings.shape[1:])
                for place, vector in grid.items():
                    cosines[place] = unit(vector) @ name
                total[index, top : top + WINDOW, left : left + WINDOW] += bilinear(cosines, WINDOW, WINDOW)
            cover[top : top + WINDOW, left : left + WINDOW] += 1
    scores = np.stack([bilinear(part / cover, image.height, image.width) for part in total])
    labels = np.zeros((image.height, image.width), int)
    for y in range(image.height):
        for x in range(image.width):
            chances = np.exp(settings.scale * scores[:, y, x])
            chances /= chances.sum()
            labels[y, x] = 0 if chances.max() < threshold else 1 + chances.argmax()
    return labels


def intersections_over_unions(predicted, truth):
    found = {}
    for index, name in enumerate(CLASSES):
        both = either = 0
        for here, there in zip(predicted.flat, truth.flat, strict=True):
            if there != 255:
                both += here == index == there
                either += index in (here, there)
        found[name] = 100 * both / either if either else None
    return found


@pytest.mark.parametrize("mode", ["maskclip", "sclip"])
@pytest.mark.parametrize("what", ["pixel", "meta-point"])
@pytest.mark.parametrize("height, width", [(41, 60), (70, 37)])
def test_the_pipeline_is_the_protocol_by_loops(clip, decoder, tmp_path, height, width, what, mode):
    settings = changed(unit=what, meta_points=POINTS, short_side=SIDE, window=WINDOW, stride=STRIDE)
    clip = reading(clip, mode)
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    image = Image.fromarray(picture(height, width))
    image.save(tmp_path / "images/0.png")
    truth = np.random.default_rng(0).integers(0, 4, (height // 4 + 1, width // 4 + 1)).repeat(4, 0).repeat(4, 1)[:height, :width]
    truth[:3] = 255
    Image.fromarray(truth.astype(np.uint8)).save(tmp_path / "labels/0.png")
    benchmark = datasets.FolderBenchmark("one", tmp_path)
    encode_benchmarks(clip, [benchmark], settings, tmp_path / "cache", (), {})
    classes, segmenter = torch.from_numpy(np.load(tmp_path / "cache/one/classes.npy")), Segmenter(clip, decoder, settings)

    chances = torch.softmax(settings.scale * torch.tensor(segmenter.segment(image, CLASSES[1:], background=True).scores), 0)
    threshold = chances.amax(0).median().item() + 1e-4  # about half of the picture is background
    expected = label_map(image, clip, decoder, settings, threshold)
    assert 0 in expected and len(np.unique(expected)) > 2

    assert np.array_equal(segmenter.segment(image, CLASSES[1:], background=True, threshold=threshold).labels, expected)
    found = evaluation.evaluate({"it": segmenter}, [evaluation.Encoded(benchmark, classes, None, threshold)])["one"]["it"]
    by_hand = intersections_over_unions(expected, truth)
    assert found == pytest.approx(by_hand), json.dumps(by_hand)
