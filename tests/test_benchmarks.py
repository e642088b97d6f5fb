import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset as wds
from PIL import Image
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassJaccardIndex

from ovseg import params
from ovseg.benchmarks import evaluation
from ovseg.benchmarks.datasets import FolderBenchmark, MeanIoU, ShardBenchmark, mean, open_benchmark, palette
from ovseg.methods.decoder import Decoder
from ovseg.segmentation.segmenter import Segmenter

pytestmark = pytest.mark.usefixtures("one_thread")

P = params.load(path=Path(__file__).parent.parent / "params.yaml")


def iou(classes, *maps):
    """MeanIoU of (predicted, truth) label maps."""
    metric = MeanIoU(classes)
    for predicted, truth in maps:
        metric.update(np.array(predicted), np.array(truth))
    return metric.compute()


# ---- mIoU


def test_iou_by_hand_with_ignored_pixels():
    found = iou("abcd", ([[0, 1, 1], [1, 0, 0]], [[0, 0, 1], [1, 255, 2]]))
    # a: 1 of 3 pixels, b: 2 of 3, c: there but never found, d: nowhere; the ignored pixel counts for none
    assert found == {"a": pytest.approx(100 / 3), "b": pytest.approx(200 / 3), "c": 0.0, "d": None}
    assert mean(found) == pytest.approx(100 / 3)


def test_a_class_that_is_only_predicted_counts_as_zero():
    found = iou("ab", ([[0, 1]], [[0, 0]]))
    assert found == {"a": pytest.approx(50), "b": 0.0} and mean(found) == pytest.approx(25)


def test_the_mean_leaves_out_classes_that_are_nowhere():
    found = {"a": 10.0, "b": None, "c": 40.0}
    assert mean(found) == 25 and mean({"b": None}) is None and mean({}) is None


def counted(count, maps):
    """IoU of each class in percent, a pixel at a time over all maps."""
    both, either = [0] * count, [0] * count
    for predicted, truth in maps:
        for p, t in zip(predicted.ravel().tolist(), truth.ravel().tolist(), strict=True):
            if t != 255:
                for label in {p, t}:
                    either[label] += 1
                    both[label] += p == t
    return [100 * b / e if e else None for b, e in zip(both, either, strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_iou_is_that_of_a_count_over_all_pictures(seed):
    rng = np.random.default_rng(seed)
    maps = []
    for _ in range(3):
        shape = rng.integers(1, 20, 2)
        truth = rng.integers(0, 5, shape).astype(np.uint8)  # labels 5 and 6 are nowhere in the truth, 6 nowhere at all
        truth[rng.random(shape) < 0.2] = 255
        maps.append((rng.integers(0, 6, shape), truth))
    found, expected = list(iou("abcdefg", *maps).values()), counted(7, maps)
    assert [value is None for value in found] == [value is None for value in expected]
    assert found == pytest.approx(expected) and found[6] is None


@pytest.mark.parametrize("count", [2, 7, 171])
@pytest.mark.parametrize("kind", [np.uint8, np.int64])
def test_iou_is_that_of_torchmetrics(count, kind):
    rng = np.random.default_rng(count)
    names = [f"c{i}" for i in range(count)]
    found = MeanIoU(names)
    matrix = MulticlassConfusionMatrix(count, ignore_index=255, validate_args=False)
    jaccard = MulticlassJaccardIndex(count, average=None, ignore_index=255, validate_args=False)
    for _ in range(3):
        shape = rng.integers(5, 25, 2)
        truth, predicted = (rng.integers(0, count, shape).astype(kind) for _ in range(2))
        ignored = rng.random(shape) < 0.3
        truth[ignored] = 255
        predicted[ignored & (rng.random(shape) < 0.5)] = 255  # what is ignored may be predicted as anything
        found.update(predicted, truth)
        for oracle in (matrix, jaccard):
            oracle.update(torch.from_numpy(predicted).long(), torch.from_numpy(truth).long())
    assert np.array_equal(found.matrix, matrix.compute())
    iou = found.compute()
    there = [i for i, name in enumerate(names) if iou[name] is not None]
    assert there == ((matrix.compute().sum(0) + matrix.compute().sum(1)) > 0).nonzero().flatten().tolist()
    assert [iou[names[i]] for i in there] == pytest.approx((100 * jaccard.compute()[there].double()).tolist(), rel=1e-5)


def test_a_picture_of_ignored_pixels_changes_nothing():
    first = ([[0, 1]], [[0, 0]])
    assert iou("ab", first, ([[1, 1]], [[255, 255]])) == iou("ab", first)
    assert iou("ab", ([[1, 1]], [[255, 255]])) == {"a": None, "b": None}


def test_iou_takes_tensors_and_arrays_of_any_integers():
    predicted, truth = np.array([[0, 1], [1, 1]]), np.array([[0, 1], [0, 255]])
    expected = iou("ab", (predicted, truth))
    for kind in (np.uint8, np.int32):
        metric = MeanIoU("ab")
        metric.update(torch.from_numpy(predicted), truth.astype(kind))
        assert metric.compute() == expected


# ---- palettes


def test_palette_colours_are_distinct_and_the_background_is_black():
    names = ["background", *(f"class {i}" for i in range(80))]  # as many as COCO-Object
    colours = palette(names)
    assert colours.shape == (81, 3) and colours.dtype == np.uint8
    assert colours[0].tolist() == [0, 0, 0]
    assert len({tuple(colour) for colour in colours.tolist()}) == 81


def test_palette_without_background_has_no_black():
    colours = palette([f"class {i}" for i in range(171)])  # as many as COCO-Stuff
    assert colours.shape == (171, 3) and len({tuple(colour) for colour in colours.tolist()}) == 171
    assert colours.max(1).min() > 0


def test_a_class_keeps_its_colour_when_a_background_joins():
    assert np.array_equal(palette(["background", "cat", "sofa"])[1:], palette(["cat", "sofa"]))


# ---- folders and shards


def png(array):
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG")
    return out.getvalue()


def pictures(count=3):
    """(key, (H, W, 3) image, (H, W) label map of values 0..2 and 255) of `count` pictures of different sizes."""
    for index in range(count):
        rng = np.random.default_rng(index)
        height, width = 8 + index, 12 - index
        labels = rng.choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
        yield f"p{index}", rng.integers(0, 256, (height, width, 3), dtype=np.uint8), labels


@pytest.fixture
def folder(tmp_path):
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for key, image, labels in pictures():
        (tmp_path / "images" / f"{key}.png").write_bytes(png(image))
        (tmp_path / "labels" / f"{key}.png").write_bytes(png(labels))
    (tmp_path / "classes.txt").write_text("cat\nsofa\n\n tall tree \n")
    return tmp_path


@pytest.fixture
def in_shards(tmp_path):
    """A spec of two shards with the pictures, and a file of class names."""
    found = list(pictures())
    for number, part in enumerate((found[:2], found[2:])):
        with wds.TarWriter(str(tmp_path / f"b-{number}.tar"), encoder=False) as tar:
            for key, image, labels in part:
                tar.write({"__key__": key, "png": png(image), "seg.png": png(labels), "txt": b"unused"})
    (tmp_path / "names.txt").write_text("background\ncat\nsofa\n")
    return str(tmp_path / "b-*.tar"), tmp_path / "names.txt"


def check_round_trip(benchmark):
    assert len(benchmark) == 3
    for _ in range(2):  # it can be read again
        for (key, image, labels), (expected_key, pixels, truth) in zip(benchmark, pictures(), strict=True):
            assert key == expected_key and image.mode == "RGB"
            assert np.array_equal(np.asarray(image), pixels) and np.array_equal(labels, truth)


def test_a_folder_is_read_in_the_order_of_names(folder):
    benchmark = open_benchmark("mine", params.Benchmark(folder=str(folder)))
    assert isinstance(benchmark, FolderBenchmark)
    check_round_trip(benchmark)
    assert benchmark.classes == benchmark.named == ["cat", "sofa", "tall tree"] and not benchmark.background


def test_shards_are_read_in_order(in_shards):
    spec, classes = in_shards
    benchmark = open_benchmark("mine", params.Benchmark(shards=spec, label="seg.png", classes=str(classes)))
    assert isinstance(benchmark, ShardBenchmark)
    check_round_trip(benchmark)


def test_a_first_class_named_background_is_no_text(in_shards):
    spec, classes = in_shards
    benchmark = ShardBenchmark("mine", spec, "seg.png", classes)
    assert benchmark.background and benchmark.classes == ["background", "cat", "sofa"] and benchmark.named == ["cat", "sofa"]


def test_a_palette_label_map_is_its_indices(folder):
    (key, _, labels), *_ = pictures()
    indexed = Image.fromarray(labels).convert("L")
    indexed.putpalette(np.arange(768, dtype=np.uint8).tobytes())  # mode P: VOC's label maps have a palette
    assert indexed.mode == "P"
    indexed.save(folder / "labels" / f"{key}.png")
    check_round_trip(FolderBenchmark("mine", folder))


def test_what_is_no_image_is_left_out(folder):
    (folder / "images" / "notes.md").write_text("taken in 2019")
    check_round_trip(FolderBenchmark("mine", folder))


@pytest.mark.parametrize("part", ["images", "labels", "classes.txt"])
def test_a_missing_part_of_the_folder_is_named(folder, part):
    (folder / part).rename(folder / "away")
    with pytest.raises(FileNotFoundError, match=f"benchmark mine: .*{part} does not exist; expected images/, labels/ and classes.txt"):
        FolderBenchmark("mine", folder)


def test_a_missing_label_map_is_named(folder):
    (folder / "labels" / "p1.png").unlink()
    with pytest.raises(FileNotFoundError, match="benchmark mine: no label map labels/p1.png"):
        FolderBenchmark("mine", folder)


def test_a_folder_without_images_is_an_error(folder):
    for path in (folder / "images").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match="benchmark mine: no images in images/"):
        FolderBenchmark("mine", folder)


@pytest.mark.parametrize("names", ["", "cat\n", "cat\nsofa\ncat\n", "\n".join(f"c{i}" for i in range(256))])
def test_classes_must_be_distinct_and_fit_a_byte(folder, names):
    (folder / "classes.txt").write_text(names)
    with pytest.raises(ValueError, match="benchmark mine: .*classes.txt must hold 2 to 255 distinct names"):
        FolderBenchmark("mine", folder)


def bad_label_maps():
    (_, _, labels), *_ = pictures()
    beyond, rgb = labels.copy(), np.stack([labels] * 3, -1)
    beyond[0, 0] = 3
    return {
        r"label map p0 has shape \(8, 12, 3\), not one index a pixel": rgb,
        "p0: image is 12x8, label map 8x12": labels.T,
        r"label map p0 holds 3; allowed are 0\.\.2 and 255": beyond,
        r"label map p0 holds 256; allowed are 0\.\.2 and 255": np.where(labels == 255, 256, labels.astype(np.uint16)),
    }


@pytest.mark.parametrize("message, labels", bad_label_maps().items(), ids=["colours", "size", "range", "16 bit"])
def test_a_bad_label_map_is_named(folder, tmp_path, message, labels):
    (folder / "labels" / "p0.png").write_bytes(png(labels))
    with pytest.raises(ValueError, match=f"benchmark mine: {message}"):
        list(FolderBenchmark("mine", folder))
    with wds.TarWriter(str(tmp_path / "b.tar"), encoder=False) as tar:
        tar.write({"__key__": "p0", "png": (folder / "images" / "p0.png").read_bytes(), "seg.png": png(labels)})
    with pytest.raises(ValueError, match=f"benchmark mine: {message}"):
        list(ShardBenchmark("mine", str(tmp_path / "b.tar"), "seg.png", folder / "classes.txt"))


def test_a_sample_without_its_label_map_is_named(in_shards):
    spec, classes = in_shards
    with pytest.raises(ValueError, match="benchmark mine: sample p0 of .*b-0.tar has no mask.png"):
        list(ShardBenchmark("mine", spec, "mask.png", classes))


def test_shards_that_are_not_there_are_named(in_shards):
    with pytest.raises(FileNotFoundError, match="no-such-.*tar"):
        ShardBenchmark("mine", str(in_shards[1].parent / "no-such-*.tar"), "seg.png", in_shards[1])


def test_a_broken_image_in_a_shard_is_named(in_shards, tmp_path):

    with wds.TarWriter(str(tmp_path / "broken.tar"), encoder=False) as tar:
        tar.write({"__key__": "k7", "png": b"no picture", "seg.png": png(np.zeros((2, 2), np.uint8))})
    with pytest.raises(Exception, match="mine.*k7"):
        list(ShardBenchmark("mine", str(tmp_path / "broken.tar"), "seg.png", in_shards[1]))


def test_a_truncated_shard_is_an_error(in_shards, tmp_path):

    whole = (tmp_path / "b-0.tar").read_bytes()
    (tmp_path / "b-0.tar").write_bytes(whole[: len(whole) // 3])
    with pytest.raises((ValueError, OSError)):
        list(ShardBenchmark("mine", in_shards[0], "seg.png", in_shards[1]))


# ---- pictures to choose a threshold on


def test_a_folder_is_calibrated_on_another_folder(folder, tmp_path):
    other = tmp_path / "other"
    for part in ("images", "labels"):
        (other / part).mkdir(parents=True)
        (other / part / "q0.png").write_bytes((folder / part / "p0.png").read_bytes())
    (other / "classes.txt").write_text("cat\nsofa\ntall tree\n")
    settings = params.Benchmark(folder=str(folder), calibration=str(other))
    assert [key for key, _, _ in open_benchmark("mine", settings, calibration=True)] == ["q0"]
    assert len(open_benchmark("mine", settings)) == 3
    (other / "classes.txt").write_text("sofa\ncat\ntall tree\n")
    with pytest.raises(ValueError, match="benchmark mine: .* hold different classes"):
        open_benchmark("mine", settings, calibration=True)


def test_shards_are_calibrated_on_other_shards(in_shards, tmp_path):
    spec, classes = in_shards
    common = {"label": "seg.png", "classes": str(classes)}
    settings = params.Benchmark(shards=str(tmp_path / "b-0.tar"), calibration=str(tmp_path / "b-1.tar"), **common)
    assert [key for key, _, _ in open_benchmark("mine", settings, calibration=True)] == ["p2"]
    overlapping = params.Benchmark(shards=str(tmp_path / "b-0.tar"), calibration=spec, **common)
    with pytest.raises(ValueError, match="benchmark mine: .*b-0.tar is evaluated"):
        open_benchmark("mine", overlapping, calibration=True)


def test_a_folder_under_another_name_is_no_other_folder(folder):
    for name in (f"{folder}/", f"{folder}/images/.."):
        with pytest.raises(ValueError, match="benchmark mine: .*p0.png is evaluated"):
            open_benchmark("mine", params.Benchmark(folder=str(folder), calibration=name), calibration=True)


def test_a_benchmark_may_have_nothing_to_choose_a_threshold_on(folder):
    with pytest.raises(ValueError, match="benchmarks.mine.calibration names no pictures") as error:
        open_benchmark("mine", params.Benchmark(folder=str(folder)), calibration=True)
    assert len(str(error.value).splitlines()) == 1


# ---- evaluation

SETTINGS = P.segment.model_copy(update={"unit": "pixel", "short_side": 8, "window": 8, "stride": 8, "scale": 1.0, "precision": "float32"})


def encoded(tmp_path, classes, maps, features):
    """A benchmark of 8x8 pictures with those label maps; features: 2-d features of a 2x2 grid of patches for each, (n, 2, 2, 2)."""
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
    for index, labels in enumerate(maps):
        (tmp_path / "images" / f"{index}.png").write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
        (tmp_path / "labels" / f"{index}.png").write_bytes(png(labels))
    (tmp_path / "classes.txt").write_text("\n".join(classes))
    return evaluation.Encoded(FolderBenchmark("mine", tmp_path), torch.eye(2), np.array(features, np.float16))


def columns(*labels):
    """An 8x8 label map of those columns."""
    return np.tile(np.array(labels, np.uint8), (8, 1))


LEFT_RIGHT = [[[1, 0], [1, 0]], [[0, 1], [0, 1]]]  # the left half is like class 0, the right one like class 1
LEFT_NONE = [[[1, 0], [1, 0]], [[0, 0], [0, 0]]]  # the right half is like neither


def evaluate(data, threshold=None):
    """What evaluation says of the untrained decoder on features of width 2, alone."""
    (result,) = evaluation.evaluate({"one": Segmenter(None, Decoder(2), SETTINGS)}, data, threshold).values()
    return result


def by_class(result):
    return {entry["class"]: entry["iou"] for entry in result["classes"]}


def test_evaluation_by_hand(tmp_path):
    data = encoded(tmp_path, ["car", "grass"], [columns(0, 0, 0, 0, 0, 0, 1, 1), columns(*[255] * 3, 0, *[1] * 4)], [LEFT_RIGHT] * 2)
    result = evaluate(data)
    # predicted: four columns of each. Over both pictures: car 5 of 7 columns, grass 6 of 8
    assert result["classes"] == [{"class": "car", "iou": pytest.approx(500 / 7)}, {"class": "grass", "iou": pytest.approx(600 / 8)}]
    assert result["miou"] == pytest.approx((500 / 7 + 75) / 2)
    assert result["pictures"] == 2


def test_evaluation_of_a_class_that_is_nowhere_is_null(tmp_path):
    data = encoded(tmp_path, ["background", "a", "b"], [columns(*[1] * 8)], [[[[1, 1], [1, 1]], [[0, 0], [0, 0]]]])
    result = json.loads(json.dumps(evaluate(data, 0.6)))  # what the evaluate notebook writes
    assert by_class(result) == {"background": None, "a": 100, "b": None} and result["miou"] == 100


def test_several_segmenters_are_evaluated_each_as_alone(tmp_path):
    maps = [columns(1, 1, 1, 0, 0, 0, 2, 2), columns(*[2] * 5, 0, 0, 1)]
    data = encoded(tmp_path, ["background", "a", "b"], maps, [LEFT_RIGHT, LEFT_NONE])
    trained = Decoder(2)
    with torch.no_grad():  # adds (0, 3) to every feature, so that class 2 wins everywhere
        trained.blocks[0].gate.fill_(20)
        trained.blocks[0].conv.weight.zero_()
        trained.blocks[0].conv.bias.copy_(torch.tensor([0.0, 3.0]))
    plain, other = Segmenter(None, Decoder(2), SETTINGS), Segmenter(None, trained, SETTINGS)
    sharp = Segmenter(None, plain.decoder, SETTINGS.model_copy(update={"scale": 0.1}))  # softmax below 0.6 everywhere
    segmenters = {"plain": plain, "other": other, "sharp": sharp}
    found = evaluation.evaluate(segmenters, data, 0.6)
    assert found == {name: evaluation.evaluate({name: one}, data, 0.6)[name] for name, one in segmenters.items()}
    assert list(found) == list(segmenters)
    assert by_class(found["other"]) == {"background": 0, "a": 0, "b": pytest.approx(700 / 16)}
    assert by_class(found["sharp"]) == {"background": pytest.approx(500 / 16), "a": 0, "b": 0}
    assert by_class(found["plain"])["a"] > 0


def test_features_of_more_pictures_than_there_are_are_an_error(tmp_path):
    data = encoded(tmp_path, ["a", "b"], [columns(*[0] * 8)] * 2, [LEFT_RIGHT] * 3)
    with pytest.raises(ValueError, match="benchmark mine has changed since `encode` read it"):
        evaluate(data)


def test_evaluation_with_a_background_by_hand(tmp_path):
    # cosines of the columns with class 1 are 1 1 1 3/4 1/4 0 0 0, with class 2 all 0; the sigmoid is above 0.6 in the first four
    data = encoded(tmp_path, ["background", "a", "b"], [columns(1, 1, 1, 0, 0, 0, 2, 2)], [LEFT_NONE])
    result = evaluate(data, 0.6)
    assert by_class(result) == {"background": pytest.approx(200 / 5), "a": pytest.approx(300 / 4), "b": 0.0}
    assert result["miou"] == pytest.approx(115 / 3)


def test_examples_are_the_wanted_pictures(tmp_path):
    maps = [columns(*[label] * 8) for label in (0, 1, 2)]
    data = encoded(tmp_path, ["background", "a", "b"], maps, [LEFT_RIGHT, LEFT_NONE, LEFT_RIGHT])
    segmenters = [Segmenter(None, Decoder(2), SETTINGS)] * 2
    rows = evaluation.examples(segmenters, data, 0.6, [1, 2])
    # cosines a - b of the last picture are 1 1 1 1/2 -1/2 -1 -1 -1, and the sigmoid of 1/2 is 0.62
    expected = [columns(*[1] * 4, *[0] * 4), columns(*[1] * 4, *[2] * 4)]
    for (image, truth, *found), index, labels in zip(rows, (1, 2), expected, strict=True):
        assert image.size == (8, 8) and np.array_equal(truth, maps[index])
        assert len(found) == 2 and all(np.array_equal(one, labels) for one in found)


def test_thresholds_are_those_of_the_benchmark_if_it_has_a_background(folder, in_shards):
    settings = P.evaluate.model_copy(update={"thresholds": {"mine": 0.7, "plain": 0.6}})
    with_background = [ShardBenchmark(name, in_shards[0], "seg.png", in_shards[1]) for name in ("mine", "other")]
    assert [evaluation.threshold_of(benchmark, settings, 0.2) for benchmark in with_background] == [0.7, 0.2]
    assert evaluation.threshold_of(FolderBenchmark("plain", folder), settings, 0.2) is None


def test_the_fingerprint_changes_with_pictures_label_maps_and_classes_and_with_nothing_else(folder):
    def now():
        return FolderBenchmark("mine", folder).fingerprint

    before = now()
    for path in folder.rglob("*.*"):
        path.touch()
    assert now() == before
    changed = [next((folder / "images").iterdir()), next((folder / "labels").glob("*.png")), folder / "classes.txt"]
    for path in changed:
        data = path.read_bytes()
        path.write_bytes(data + b"\nz")
        assert now() != before
        path.write_bytes(data)
    assert now() == before
    changed[0].unlink()
    assert now() != before


def test_the_fingerprint_of_shards_changes_with_them(in_shards, tmp_path):
    spec, names = in_shards
    before = ShardBenchmark("mine", spec, "seg.png", names).fingerprint
    data = (tmp_path / "b-1.tar").read_bytes()
    (tmp_path / "b-1.tar").write_bytes(data[:2000] + bytes([data[2000] ^ 1]) + data[2001:])  # of the same size
    assert ShardBenchmark("mine", spec, "seg.png", names).fingerprint != before
    (tmp_path / "b-1.tar").write_bytes(data)
    assert ShardBenchmark("mine", spec, "seg.png", names).fingerprint == before


@pytest.mark.parametrize("count, least", [(2, 300), (5, 120), (14, 80), (19, 60), (22, 50), (24, 60)])
def test_palette_colours_are_far_from_each_other(count, least):
    colours = palette([str(index) for index in range(count)]).astype(int)
    distance = np.abs(colours[:, None] - colours).sum(-1)
    assert distance[~np.eye(count, dtype=bool)].min() >= least
