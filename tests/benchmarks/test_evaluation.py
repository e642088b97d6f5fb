"""Evaluation from cached features and from pictures, of several segmenters on several benchmarks in one pass."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from handmade import study
from tiny import SETTINGS, changed, reading

from ovseg.benchmarks import evaluation
from ovseg.benchmarks.datasets import FolderBenchmark, open_benchmarks
from ovseg.benchmarks.evaluation import evaluate_folder, open_suite
from ovseg.schema import Benchmark
from ovseg.segmentation.segmenter import Segmenter
from ovseg.segmentation.windows import cut_windows, raw_labels, to_labels
from ovseg.training.decoder import Decoder


@pytest.fixture
def several(clip, decoder):
    """Segmenters of the decoders of two seeds, in turn, and of three units."""
    torch.manual_seed(2)
    other = Decoder(clip.width)
    for block in other.blocks:
        torch.nn.init.constant_(block.gate, -0.9)
    first, second = Segmenter(clip, decoder, SETTINGS), Segmenter(clip, other, SETTINGS)
    return {"0": first, "1 group": second.with_unit("group"), "0 four": first.with_unit("meta-point"), "1": second}


def score(suite, segmenters):
    """What score_pictures yields, all of it, with scores as tensors."""
    scored = evaluation.score_pictures(suite, segmenters)
    return [(image, truths, [[one.rows() for one in of] for of in scores]) for image, truths, scores in scored]


@pytest.mark.parametrize("mode", ["clip", "maskclip", "naclip"])
def test_cached_features_score_as_direct_encoding_and_as_segment(clip, decoder, mine, suite_of, mode):
    (cached,) = suite_of(study(mine, mode))
    one = Segmenter(reading(clip, mode), decoder, SETTINGS)  # single pixels: float16 may move one from a meta-point to the next
    pictures = list(zip(score([cached], [one]), score([replace(cached, windows=None)], [one]), cached.benchmark, strict=True))
    assert len(pictures) == 3
    for (_, (labels,), [[rounded]]), (shown, _, [[exact]]), (_, image, expected_labels) in pictures:
        assert shown == image and np.array_equal(labels, expected_labels)
        np.testing.assert_allclose(rounded, exact, atol=5e-3)
        np.testing.assert_allclose(exact, one.segment(image, ["cat", "sofa"]).scores, atol=1e-5)
    with_clip, without = (evaluation.evaluate({"one": Segmenter(c, decoder, SETTINGS)}, [cached]) for c in (one.clip, None))
    assert with_clip == without and without["mine"]["one"].keys() == {"background", "cat", "sofa"}


def test_a_folder_is_evaluated_with_the_given_threshold_or_the_segmenters_own(clip, decoder, mine):
    folder = FolderBenchmark("mine", mine["mine"].folder)
    segmenter = Segmenter(clip, decoder, changed(threshold=0.6))
    given, own = evaluate_folder(segmenter, folder, 0.55), evaluate_folder(segmenter, folder)
    assert (given["threshold"], own["threshold"]) == (0.55, 0.6) and given["iou"] != own["iou"]
    assert (given["benchmark"], given["pictures"], given["unit"]) == (str(folder.folder), 3, "pixel")
    pairs = [(segmenter.segment(image, folder.named, True, 0.55).labels.flatten(), truth.flatten()) for _, image, truth in folder]
    predicted, truth = map(np.concatenate, zip(*pairs, strict=True))
    for index, name in enumerate(folder.classes):
        both, either = ((predicted == index) & (truth == index)).sum(), ((predicted == index) | (truth == index)).sum()
        assert given["iou"][name] == pytest.approx(100 * both / either, abs=0.2)  # classes are embedded in another batch
    assert given["miou"] == pytest.approx(np.mean(list(given["iou"].values())))


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "direct"])
def test_one_pass_evaluates_each_seed_unit_and_benchmark_exactly_as_alone(several, sharing, suite_of, cached):
    suite = suite_of(study(sharing, thresholds={"things": 0.6, "apart": 0.55}, cached=cached))
    together = evaluation.evaluate(several, suite)
    assert list(together) == ["things", "apart", "all"] and together["all"]["0"].keys() == {"cat", "sofa", "tall tree", "sky"}
    for (benchmark, ious), encoded in zip(together.items(), suite, strict=True):
        for name, segmenter in several.items():
            assert evaluation.evaluate({name: segmenter}, [encoded]) == {benchmark: {name: ious[name]}}
        assert len({tuple(iou.values()) for iou in ious.values()}) == len(several)
        assert benchmark == "all" or all(min(iou.values()) > 0 for iou in ious.values())  # the background's, too


def test_a_part_of_a_benchmark_is_every_nth_picture(sharing, mine):
    for benchmark in open_benchmarks(sharing | mine):
        keys = [key for key, _, _ in benchmark]
        assert [[key for key, _, _ in benchmark.part(first, 2)] for first in range(2)] == [keys[::2], keys[1::2]] and len(keys) > 1


def test_clip_and_each_decoder_run_once_a_picture_for_all_segmenters_and_benchmarks(several, sharing, suite_of, clip, monkeypatch):
    suite, calls = suite_of(study(sharing, cached=False)), []
    for module, method in [(clip, "encode_dense"), (several["0"].decoder, "forward"), (several["1"].decoder, "forward")]:
        real = getattr(module, method)
        monkeypatch.setattr(module, method, lambda x, module=module, real=real: calls.extend([module] * len(x)) or real(x))
    evaluation.evaluate(several, suite)
    windows = sum(len(cut_windows(image, SETTINGS)[0]) for encoded in suite[:2] for _, image, _ in encoded.benchmark)
    assert [calls.count(module) for module in (clip, several["0"].decoder, several["1"].decoder)] == [windows] * 3


@pytest.mark.parametrize("how", ["mean", "max"])
def test_names_of_a_class_are_merged_from_the_cache_as_without_it(several, sharing, suite_of, clip, how):
    p, segmenter = study(sharing), Segmenter(clip, several["0"].decoder, changed(synonyms=how))
    cached = suite_of(p.model_copy(update={"segment": segmenter.settings}))[0]
    direct = evaluation.encode_classes(segmenter, cached.benchmark)
    assert cached.benchmark.classes == ["background", "cat", "sofa"] and direct.classes.shape[:-1] == ((2,) if how == "mean" else (2, 2))
    torch.testing.assert_close(cached.classes, direct.classes)  # in another batch


def test_examples_show_the_truth_and_each_segmenters_labels(several, mine, suite_of):
    (encoded,), segmenters = suite_of(study(mine, thresholds={"mine": 0.55})), list(several.values())
    rows, pictures = evaluation.examples(segmenters, encoded, [2, 0]), score([encoded], segmenters)
    assert list(rows) == [2, 0]
    for index, (image, truth, *maps) in rows.items():
        expected_image, (labels,), scores = pictures[index]
        assert image == expected_image and np.array_equal(truth, labels)
        for label_map, (expected,) in zip(maps, scores, strict=True):
            assert np.array_equal(label_map, to_labels(expected, SETTINGS.scale, 0.55)) and 0 < (label_map == 0).mean() < 1
    (with_raw,) = evaluation.examples(segmenters, encoded, [2], raw=True).values()
    grid = list(evaluation.score_pictures([encoded], segmenters[:1]))[2][2][0][0]
    assert np.array_equal(with_raw[2], raw_labels(grid, SETTINGS.scale, 0.55)) and not np.array_equal(with_raw[2], with_raw[3])
    assert all(np.array_equal(a, b) for a, b in zip(with_raw[3:], rows[2][2:], strict=True))
    for wanted, shown in (([1, 7], [1]), ([8, 9], [0])):  # beyond the last picture
        assert list(evaluation.examples(segmenters[:1], encoded, wanted)) == shown


def test_pictures_at_quantiles_are_those_whose_own_miou_lies_there(several, mine, suite_of):
    (encoded,) = suite_of(study(mine))
    segmenter, by_picture = several["0"], []
    for _, (labels,), ((scores,),) in score([encoded], [segmenter]):
        predicted, ious = to_labels(scores, SETTINGS.scale, segmenter.settings.threshold).numpy(), []
        for index in set(np.unique(predicted)) | set(np.unique(labels)):
            ious.append((predicted == index)[labels == index].sum() / ((predicted == index) | (labels == index)).sum())
        by_picture.append(np.mean(ious))
    worst, middle, best = np.argsort(by_picture)
    assert evaluation.at_quantiles(segmenter, encoded, [0, 0.5, 1]) == [worst, middle, best]
    assert evaluation.at_quantiles(segmenter, encoded, [1, 0.9]) == [best] and evaluation.at_quantiles(segmenter, encoded, [1], 1) == [0]


def test_the_threshold_is_that_of_the_benchmark_else_of_the_segmenter_and_none_without_background(several, sharing, suite_of):
    suite, segmenter = suite_of(study(sharing, thresholds={"apart": 0.0})), Segmenter(None, several["0"].decoder, changed(threshold=0.7))
    thresholds = {encoded.benchmark.name: encoded.background_threshold(segmenter) for encoded in suite}
    assert thresholds == {"things": 0.7, "apart": 0.0, "all": None}
    with pytest.raises(ValueError, match="benchmark all: a threshold needs the class 'background' first; the first class is 'cat'"):
        suite_of(study(sharing, thresholds={"all": 0.3}))


def test_features_that_are_missing_or_of_other_pictures_are_an_error(several, mine, sharing, suite_of, tmp_path):
    (encoded,) = suite_of(study({"later": Benchmark(folder=str(tmp_path / "later"), optional=True), **mine}))
    assert encoded.benchmark.name == "mine" and encoded.windows is not None
    for p in (study(sharing), study(mine, mode="clip")):  # benchmarks that were not encoded; a mode that was not
        with pytest.raises(FileNotFoundError, match="its features are not in .*cache: run `dvc repro benchmarks`"):
            open_suite(p, tmp_path / "cache")
    (direct,) = open_suite(study(mine, mode="clip", cached=False), tmp_path / "cache")
    assert direct.windows is None and torch.equal(direct.classes, encoded.classes)
    for windows in (encoded.windows[:-1], np.concatenate([encoded.windows, encoded.windows[:1]])):
        with pytest.raises(ValueError, match="benchmark mine: the cached windows are of other pictures: run `dvc repro benchmarks`"):
            evaluation.evaluate({"one": several["0"]}, [replace(encoded, windows=windows)])
