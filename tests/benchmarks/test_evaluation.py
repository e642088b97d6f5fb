"""Evaluation from cached features and from pictures, of several segmenters on several benchmarks in one pass."""

import itertools
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SETTINGS, changed, picture, reading

from ovseg.benchmarks import evaluation
from ovseg.benchmarks.evaluation import open_suite
from ovseg.clip import dense
from ovseg.schema import Benchmark
from ovseg.segmentation.segmenter import Segmenter
from ovseg.segmentation.windows import cut_windows, to_labels
from ovseg.training.decoder import Decoder

pytestmark = pytest.mark.usefixtures("one_thread")

CACHED_OR_NOT = pytest.mark.parametrize("modes", [["maskclip"], []], ids=["cached", "direct"])


@pytest.fixture
def several(clip, decoder):
    """Segmenters of the decoders of two seeds, in turn, and of three units."""
    torch.manual_seed(2)
    other = Decoder(clip.width)
    for block in other.blocks:
        torch.nn.init.constant_(block.gate, -0.9)
    first, second = Segmenter(clip, decoder, SETTINGS), Segmenter(clip, other, SETTINGS)
    nine = Segmenter(clip, decoder, changed(unit="meta-point", meta_points=9))
    return {"0": first, "1 group": second.with_unit("group"), "0 four": first.with_unit("meta-point"), "1": second, "0 nine": nine}


def score(suite, segmenters):
    """What score_pictures yields, all of it, with scores as tensors."""
    scored = evaluation.score_pictures(suite, segmenters)
    return [(image, truths, [[one.rows() for one in of] for of in scores]) for image, truths, scores in scored]


# ---- what is scored


@pytest.mark.parametrize("mode", dense.DENSE_MODES)
def test_cached_features_score_as_direct_encoding_and_as_segment(clip, decoder, mine, study, suite_of, mode):
    (cached,) = suite_of(study(mine, mode), dense.DENSE_MODES)
    assert cached.windows.dtype == np.float16
    one = Segmenter(reading(clip, mode), decoder, SETTINGS)  # single pixels: float16 may move one from a meta-point to the next
    pictures = list(zip(score([cached], [one]), score([replace(cached, windows=None)], [one]), cached.benchmark, strict=True))
    assert len(pictures) == 3
    for (_, (labels,), [[rounded]]), (shown, _, [[exact]]), (_, image, expected_labels) in pictures:
        assert shown == image and np.array_equal(labels, expected_labels)
        np.testing.assert_allclose(rounded, exact, atol=5e-3)
        np.testing.assert_allclose(exact, one.segment(image, ["cat", "sofa"]).scores, atol=1e-5)


def test_a_segmenter_without_clip_evaluates_cached_features(clip, decoder, mine, study, suite_of):
    suite = suite_of(study(mine))
    with_clip, without = (evaluation.evaluate({"one": Segmenter(c, decoder, SETTINGS)}, suite) for c in (clip, None))
    assert with_clip == without and without["mine"]["one"].keys() == {"background", "cat", "sofa"}


def test_the_first_window_is_that_of_the_first_picture(clip, decoder, mine, study, suite_of):
    (cached,) = suite_of(study(mine))
    for encoded in (cached, replace(cached, windows=None)):
        window, embeddings = evaluation.first_window(Segmenter(clip, decoder, SETTINGS), encoded)
        assert np.array_equal(window, picture(32, 32, 0))
        with torch.no_grad():
            np.testing.assert_allclose(embeddings, decoder(clip.encode_dense(window[None])), rtol=1e-2, atol=1e-2)


def test_the_speed_is_that_of_the_middle_picture_and_the_first_is_not_timed(clip, decoder, mine, study, suite_of, monkeypatch):
    (encoded,) = suite_of(study(mine))
    pictures, clock, spent = len(encoded.benchmark), [0.0], iter([100.0, 0.5, 0.25, 0.125, 1.0])
    segmenter, segmented = Segmenter(clip, decoder, SETTINGS), []

    def segment(image, names, background):
        segmented.append((image.size, list(names), background))
        clock[0] += next(spent)

    monkeypatch.setattr(segmenter, "segment", segment)
    monkeypatch.setattr(evaluation.time, "perf_counter", lambda: clock[0])
    found = evaluation.images_a_second(segmenter, encoded, 3)
    assert pictures >= 3 and len(segmented) == 4 and segmented[0] == segmented[1]
    assert segmented[0][1:] == (["cat", "sofa"], True) and found == 1 / 0.25


# ---- one pass


@CACHED_OR_NOT
def test_several_seeds_units_and_benchmarks_score_in_one_pass_exactly_as_each_alone(several, sharing, study, suite_of, modes):
    things, _, everything = suite_of(study(sharing), modes)
    segmenters = list(several.values())
    together = score([things, everything], segmenters)
    assert len(together) == 2
    for s, b in itertools.product(range(len(segmenters)), range(2)):
        alone = score([(things, everything)[b]], [segmenters[s]])
        for (image, truths, scores), (own_image, (own_truth,), [[expected]]) in zip(together, alone, strict=True):
            assert image == own_image and np.array_equal(truths[b], own_truth) and torch.equal(scores[s][b], expected)
    for _, truths, scores in together:
        assert not np.array_equal(*truths)
        for (a, _), (b, _) in itertools.combinations(scores, 2):  # none stands in for another
            assert (a - b).abs().max() > 1e-3


@CACHED_OR_NOT
def test_evaluation_in_one_pass_is_exactly_that_of_each_seed_unit_and_benchmark_alone(several, sharing, study, suite_of, modes):
    suite = suite_of(study(sharing, thresholds={"things": 0.6, "apart": 0.55}), modes)
    together = evaluation.evaluate(several, suite)
    assert list(together) == ["things", "apart", "all"]
    for (benchmark, ious), encoded in zip(together.items(), suite, strict=True):
        for name, segmenter in several.items():
            assert evaluation.evaluate({name: segmenter}, [encoded]) == {benchmark: {name: ious[name]}}
        assert len({tuple(iou.values()) for iou in ious.values()}) == len(several)
    assert together["all"]["0"].keys() == {"cat", "sofa", "tall tree", "sky"}
    for name in ("things", "apart"):
        assert all(min(iou.values()) > 0 for iou in together[name].values())  # of which the background is one


def test_clip_and_each_decoder_run_once_a_picture_for_all_segmenters_and_benchmarks(several, sharing, study, suite_of, clip, monkeypatch):
    suite, calls = suite_of(study(sharing), []), []
    decoders = {"0": several["0"].decoder, "1": several["1"].decoder}
    for what, module, method in [("clip", clip, "encode_dense"), *((seed, module, "forward") for seed, module in decoders.items())]:
        real = getattr(module, method)
        monkeypatch.setattr(module, method, lambda x, what=what, real=real: calls.extend([what] * len(x)) or real(x))
    evaluation.evaluate(several, suite)
    windows = sum(len(cut_windows(image, SETTINGS)[0]) for encoded in suite[:2] for _, image, _ in encoded.benchmark)
    assert {what: calls.count(what) for what in calls} == {"clip": windows, "0": windows, "1": windows}


# ---- examples


@CACHED_OR_NOT
def test_examples_show_the_truth_and_each_segmenters_labels(several, mine, study, suite_of, modes):
    suite, segmenters = suite_of(study(mine, thresholds={"mine": 0.55}), modes), list(several.values())
    rows, pictures = evaluation.examples(segmenters, suite[0], [2, 0]), score(suite, segmenters)
    assert len(rows) == 2
    for (image, truth, *maps), (expected_image, (labels,), scores) in zip(rows, (pictures[2], pictures[0]), strict=True):
        assert image == expected_image and np.array_equal(truth, labels)
        for found, (expected,) in zip(maps, scores, strict=True):
            assert np.array_equal(found, to_labels(expected, SETTINGS.scale, 0.55)) and 0 < (found == 0).mean() < 1


@pytest.mark.parametrize("wanted, shown", [([0, 2], [0, 2]), ([1, 7], [1]), ([8, 9], [0])])
def test_examples_beyond_the_last_picture_are_left_out_and_the_first_stands_in_for_none(several, mine, study, suite_of, wanted, shown):
    (encoded,) = suite_of(study(mine))
    pictures = [image for _, image, _ in encoded.benchmark]
    assert [image for image, *_ in evaluation.examples([several["0"]], encoded, wanted)] == [pictures[index] for index in shown]


def test_pictures_at_quantiles_are_those_whose_own_miou_lies_there(several, mine, study, suite_of):
    (encoded,) = suite_of(study(mine))
    segmenter, by_picture = several["0"], []
    for _, (labels,), ((scores,),) in score([encoded], [segmenter]):
        found, ious = to_labels(scores, SETTINGS.scale, segmenter.settings.threshold).numpy(), []
        for index in set(np.unique(found)) | set(np.unique(labels)) - {255}:
            ious.append((found == index)[labels == index].sum() / ((found == index) | (labels == index)).sum())
        by_picture.append(np.mean(ious))
    worst, middle, best = np.argsort(by_picture)
    assert evaluation.at_quantiles(segmenter, encoded, [0, 0.5, 1]) == [worst, middle, best]
    assert evaluation.at_quantiles(segmenter, encoded, [1, 0.9]) == [best] and evaluation.at_quantiles(segmenter, encoded, [1], 1) == [0]


# ---- the suite that `encode` found


def test_the_suite_is_what_encode_found(mine, study, suite_of, tmp_path):
    optional = {"later": Benchmark(folder=str(tmp_path / "later"), optional=True)}  # it was not there
    (found,) = suite_of(study({**optional, **mine}))
    assert found.benchmark.name == "mine" and found.windows is not None


def test_a_benchmarks_threshold_is_its_own_else_the_segmenters_and_none_without_background(several, sharing, study, suite_of):
    class Asked:
        def labels(self, scale, threshold):
            return scale, threshold

    suite = suite_of(study(sharing, thresholds={"apart": 0.0}))
    segmenter = Segmenter(None, several["0"].decoder, SETTINGS.model_copy(update={"threshold": 0.7, "scale": 9.0}))
    found = {encoded.benchmark.name: encoded.labels(Asked(), segmenter) for encoded in suite}
    assert found == {"things": (9.0, 0.7), "apart": (9.0, 0.0), "all": (9.0, None)}
    with pytest.raises(ValueError, match="evaluate.thresholds.all: all has no background"):
        suite_of(study(sharing, thresholds={"all": 0.3}))


def test_a_benchmark_that_changed_since_encode_is_named(mine, study, suite_of, tmp_path):
    suite_of(study(mine))
    Image.new("L", (32, 32)).save(tmp_path / "mine/labels/0.png")
    with pytest.raises(ValueError, match="benchmark mine has changed since `encode`"):
        open_suite(study(mine), tmp_path / "cache")


def test_a_benchmark_that_went_since_encode_is_an_error_even_if_optional(mine, study, suite_of, tmp_path):
    suite_of(study(mine))
    shutil.rmtree(tmp_path / "mine")
    with pytest.raises(FileNotFoundError, match="benchmark mine"):
        open_suite(study({"mine": mine["mine"].model_copy(update={"optional": True})}), tmp_path / "cache")


def test_other_values_than_encode_ran_with_are_named(mine, study, suite_of, tmp_path):
    suite_of(study(mine))
    for key, value in {"templates": ["zzz {}"], "stride": 8, "window": 24, "short_side": 40}.items():
        with pytest.raises(ValueError, match=f"segment.{key} = .*`encode` ran with"):
            open_suite(study(mine, **{key: value}), tmp_path / "cache")
    assert open_suite(study(mine, unit="group", threshold=0.1, batch=1), tmp_path / "cache")  # nothing that features depend on


def test_a_suite_of_other_parameters_or_none_is_an_error(mine, sharing, study, suite_of, tmp_path):
    suite_of(study(mine))
    with pytest.raises(ValueError, match="benchmark mine is in .*suite.json, not among the benchmarks"):
        open_suite(study(sharing), tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match="suite.json does not exist"):
        open_suite(study(mine), tmp_path / "nothing")
