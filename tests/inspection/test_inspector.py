"""The page without a browser: what each control draws again, and what a wrong input does."""

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image
from small_project import write
from tiny import P, changed, picture

from ovseg import Segmenter
from ovseg.inspection import inspector as module
from ovseg.inspection.inspector import Inspector
from ovseg.inspection.runs import Opened, find
from ovseg.inspection.view import Texts
from ovseg.methods import groupvit
from ovseg.study import figures

pytestmark = pytest.mark.usefixtures("one_thread")
TRAINING, LABELLING = ("similarity", "object", "positive", "region"), ("units", "cosines", "labels", "error")


@pytest.fixture
def page(clip, decoder, tmp_path, monkeypatch):
    """An Inspector of one run, of random weights, on the first picture of `street`."""
    segmenter = Segmenter(clip, decoder, changed(unit="meta-point"))
    monkeypatch.setattr(module, "open_run", lambda name, models: Opened(segmenter, Texts(clip, changed().templates)))
    monkeypatch.setattr(module, "find", lambda models: ["mgca", "untrained/maskclip"])
    p = write(tmp_path)
    found = Inspector(p.model_copy(update={"segment": changed(unit="meta-point")}), count=1)
    found.controls.source.value = "street"
    return found


def shown(page):
    slot = page.slots[0]
    return {name: panel.image.value for name, panel in zip((*TRAINING, *LABELLING), (*slot.training, *slot.labelling), strict=True)}


def drawn_again(page, act):
    before = shown(page)
    act()
    return {name for name, value in shown(page).items() if value != before[name]}


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def test_each_slider_draws_what_depends_on_it(page):
    c = page.controls
    cases = {
        "alpha": (0.7, {"object"}),
        "beta": (0.3, {"region"}),
        "k": (0.5, {"positive"}),
        "meta_points": (1, {"units", "cosines", "labels", "error"}),
    }
    for name, (value, expected) in cases.items():
        found = drawn_again(page, lambda name=name, value=value: setattr(getattr(c, name), "value", value))
        assert found and found <= expected, name
    assert {"labels", "error"} & drawn_again(page, lambda: setattr(c.background, "value", not c.background.value))


def test_learned_groups_are_shown_of_a_run_that_has_some(page, monkeypatch):
    opened = module.open_run("mgca", "models")
    page.controls.unit.value = "learned-group"
    units = page.slots[0].labelling[0]
    assert "units around 4 meta-points" in units.title.value and "this run has learned no groups" in units.foot.value
    torch.manual_seed(0)
    grouping = groupvit.Objective(P.groupvit.model_copy(update={"groups": 3}), opened.segmenter.clip.width)
    learned = Segmenter(opened.segmenter.clip, opened.segmenter.decoder, opened.segmenter.settings, grouping)
    monkeypatch.setattr(module, "open_run", lambda name, models: opened._replace(segmenter=learned))
    page.controls.index.value = 1
    count = len(page.slots[0].view.form("learned-group", 4).ids.unique())
    assert f"{count} units as learned in training" in units.title.value and "no groups" not in units.foot.value


def test_k_stays_within_the_object(page):
    page.controls.alpha.value = 0.03
    assert page.controls.k.value == 0.03 and "bad" not in page.status.value


def test_a_typed_class_is_in_the_legend_with_a_colour_of_its_own(page):
    page.controls.classes.value = "cat, sofa, pink <b>elephant"
    legend = page.slots[0].labelling[2].foot.value
    assert "pink &lt;b&gt;elephant" in legend
    palette = figures.palette(["background", "cat", "sofa", "pink"])
    assert page.colours(["background", "cat", "sofa", "pink <b>elephant"]).tolist() == palette.tolist()


def test_a_click_marks_the_pixel_and_explains_it(page):
    before = page.slots[0].why.value
    assert drawn_again(page, lambda: page.click(0.9, 0.05)) == {*TRAINING, *LABELLING}
    why = page.slots[0].why.value
    assert why != before and re.search(r"unit \d of window 0: \d+ of its 64 pixels", why)
    assert why.count("<tr>") == 3  # the columns' names, two classes


def test_a_wrong_input_says_so_and_leaves_the_page_as_it_is(page):
    for control, value, message in (
        ("classes", "cat", "at least two"),
        ("classes", "cat, cat", "cat comes twice"),
        ("classes", "cat, background", "no class of its own"),
        ("index", 7, "allowed are 0 to 1"),
        ("text", " ", "any words"),
    ):
        before = getattr(page.controls, control).value
        assert not drawn_again(page, lambda control=control, value=value: setattr(getattr(page.controls, control), "value", value))
        assert "bad" in page.status.value and message in page.status.value
        getattr(page.controls, control).value = before
        assert "bad" not in page.status.value


def test_a_file_of_ones_own_has_no_truth(page, tmp_path):
    Image.fromarray(picture(40, 33)).save(tmp_path / "mine.png")
    page.controls.path.value = str(tmp_path / "mine.png")
    page.controls.source.value = module.FILE
    assert "mine.png: seen as in evaluation" in page.status.value
    assert page.truth.layout.display == "none" and "no truth" in page.slots[0].labelling[3].title.value
    assert pixels(page.shown.image.value).shape == (320, 264, 3)


def test_runs_are_all_trained_models_and_the_untrained_modes(tmp_path):
    for folder in ("mgca", "trained/mgca.k=0", "clip"):
        (tmp_path / folder).mkdir(parents=True)
        if folder != "clip":
            (tmp_path / folder / "segmenter.json").write_text("{}")
    modes = ("clip", "maskclip", "sclip", "clearclip", "naclip", "pearl")
    assert find(tmp_path) == ["mgca", "trained/mgca.k=0", *(f"untrained/{mode}" for mode in modes)]
