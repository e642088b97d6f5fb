"""The page without a browser: pictures and runs to choose from, what each control draws again, and what bad input does."""

import io
import itertools
import re
from datetime import datetime

import numpy as np
import pytest
from PIL import Image
from small import write_tar
from tiny import P, changed, picture, save, write_benchmark

from ovseg import Segmenter
from ovseg.benchmarks.datasets import open_benchmark
from ovseg.inspection import inspector
from ovseg.inspection.inspector import OWN, PAIRS, Inspector, make_controls
from ovseg.inspection.view import benchmark_picture, training_pair
from ovseg.schema import Benchmark

CLASSES = ["background", "cat", "sofa"]
TRUTH = np.repeat(np.array([0, 1, 2, 1], np.uint8), 12)[None].repeat(32, 0)  # (32, 48)
PANELS = ("picture", "truth", "similarity", "object", "positive", "region", "units", "cosines", "labels", "error")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project of three benchmark pictures and three training pairs: its Params and folder."""
    folder = tmp_path_factory.mktemp("project")
    street = write_benchmark(folder / "street", [np.roll(TRUTH, i, 1) for i in range(3)], CLASSES)
    images = [Image.fromarray(picture(32, 48, seed=5 + i)) for i in range(3)]
    samples = {f"k{i}": {"png": images[i], "txt": b"caption %d" % i, "seg.png": Image.fromarray(TRUTH)} for i in range(3)}
    pairs = write_tar(folder / "pairs.tar", samples)
    (folder / "shards.txt").write_text(f"{pairs}\n")
    (folder / "pairs.txt").write_text("pairs/k0\npairs/k1\npairs/k2\n")
    shards = Benchmark(shards=pairs, label="seg.png", classes=str(street / "classes.txt"))
    changes = {"clip": P.clip.model_copy(update={"image_size": 32}), "segment": changed(unit="meta-point")}
    return P.model_copy(update=changes | {"benchmarks": {"shards": shards, "street": Benchmark(folder=str(street))}}), folder


@pytest.fixture
def page(clip, decoder, project, monkeypatch):
    """An Inspector of an untrained run of random weights, on the first picture of `street`."""
    monkeypatch.setattr(inspector, "open_run", lambda *_: Segmenter(clip, decoder, changed(unit="meta-point")))
    return Inspector(project[0], project[1] / "models", project[1])


def shown(page, part, run=0):
    """{panel: its PNG (part = 0) or its caption (part = 1)}."""
    return {name: panel.children[part].value for name, panel in zip(PANELS, page.runs[run].children, strict=True)}


def redrawn(page, control, value):
    """The panels whose picture changes as a control gets a value."""
    before = shown(page, 0)
    getattr(page.controls, control).value = value
    return {name for name, image in shown(page, 0).items() if image != before[name]}


def test_each_control_redraws_what_depends_on_it_and_texts_fit_the_picture(page):
    c = page.controls
    assert (c.classes.value, c.background.value, c.text.value, c.other.value) == ("cat, sofa", True, "cat", "sofa")
    for control, value, possible in (
        *(("alpha", 0.7, {"object"}), ("beta", 0.3, {"region"}), ("k", 0.5, {"positive"}), ("meta_points", 1, set(PANELS[6:]))),
        *(("background", False, {"labels", "error"}), ("text", "tree", {"similarity", "object", "positive", "cosines"})),
    ):
        changes = redrawn(page, control, value)
        assert changes and changes <= possible and not page.status.value, control
    assert redrawn(page, "number", 1) == set(PANELS)
    c.alpha.value = 0.03
    assert c.k.value == 0.03  # the positive pixel stays within the object
    assert redrawn(page, "source", PAIRS) == set(PANELS) and (c.text.value, c.other.value) == ("caption 1", "cat")


def test_a_click_moves_the_ring_and_explains_the_pixel_below_it(page):
    before, explained = shown(page, 0), shown(page, 1)["cosines"]
    page.move_ring({"relativeY": 90, "relativeX": 5, "boundingRectHeight": 100, "boundingRectWidth": 100})
    captions = shown(page, 1)
    assert all(image != before[name] for name, image in shown(page, 0).items())
    assert re.search(r"unit \d of window 0, \d+ of its 64 pixels", captions["units"])
    assert captions["cosines"] != explained and captions["cosines"].count("<tr>") == 3  # a head and two classes


def test_a_second_run_appears_and_texts_are_escaped(page):
    assert page.runs[1].layout.display == "none"
    page.controls.run2.value, page.controls.unit.value = "naclip", "learned-group"
    page.controls.classes.value = "pink <b>elephant\ncat, sofa"
    captions = shown(page, 1, run=1)
    assert page.runs[1].layout.display is None and "<b>naclip: street, picture 0</b>" in captions["picture"]
    assert "units: meta-point" in captions["units"]  # the run learned no groups
    assert "pink &lt;b&gt;elephant" in captions["labels"]


def test_bad_input_is_explained_and_leaves_the_panels_as_they_are(page):
    for control, value, message in (
        *(("classes", "cat, cat", "occurs twice"), ("classes", "cat, background", "background")),
        *(("number", 7, "must be between 0 and 2"), ("meta_points", 256, "at most 64"), ("source", OWN, "upload a picture")),
    ):
        chosen = getattr(page.controls, control).value
        assert not redrawn(page, control, value) and message in page.status.value, control
        assert not redrawn(page, control, chosen) and not page.status.value, control


def test_an_uploaded_picture_has_no_truth_and_a_broken_one_is_refused(page):
    file = {"name": "mine.png", "type": "image/png", "size": 5, "last_modified": datetime.now(), "content": memoryview(b"words")}
    page.controls.source.value = OWN
    assert not redrawn(page, "upload", [file]) and "picture" in page.status.value
    image = io.BytesIO()
    Image.fromarray(picture(40, 33)).save(image, "PNG")
    assert redrawn(page, "upload", [file | {"content": image.getbuffer()}]) == set(PANELS) and not page.status.value
    assert "mine.png" in shown(page, 1)["picture"] and "0 of 0 judged" in shown(page, 1)["error"]


def test_pictures_come_with_their_truth_and_training_pairs_are_cropped(project):
    for name, index in itertools.product(("street", "shards"), range(3)):
        drawn = benchmark_picture(open_benchmark(name, project[0].benchmarks[name]), index)
        assert np.array_equal(drawn.image, picture(32, 48, seed=index + 5 * (name == "shards"))) and list(drawn.classes) == CLASSES
        assert np.array_equal(drawn.truth, np.roll(TRUTH, index, 1) if name == "street" else TRUTH) and drawn.side is None
    pair = training_pair(project[0], 1, project[1])
    assert pair.caption == "caption 1" and pair.side == 32
    assert np.array_equal(pair.image, picture(32, 48, seed=6)[:, 8:40]) and np.array_equal(pair.truth, TRUTH[:, 8:40])


def test_runs_are_trained_models_and_untrained_modes(tmp_path, project):
    for file in ("default/segmenter.json", "mgca.k=0/segmenter.json", "clip/open_clip_config.json"):
        save(tmp_path / file, "")
    runs = ["default", "mgca.k=0", *project[0].ablations.untrained, "ViT-B-16/openai"]
    assert list(make_controls(project[0], tmp_path, ["ViT-B-16/openai"]).run1.options) == runs
