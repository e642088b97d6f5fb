"""Figures: what they show and say, not how they look."""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ovseg.study import curves, figures

PICTURE = np.full((12, 16, 3), 200, np.uint8)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def texts(figure):
    figure.canvas.draw()
    return [text.get_text() for text in figure.findobj(plt.Text) if text.get_text()]


def test_a_grid_has_titles_captions_and_a_picture_in_each_place():
    figure = figures.grid([[PICTURE, PICTURE]] * 2, ["one", "two"], captions=[["a", "b"], ["c", ""]], title="all")
    assert {"one", "two", "a", "b", "c", "all"} <= set(texts(figure)) and all(axis.images for axis in figure.axes)


def test_a_long_title_keeps_to_the_figure():
    figure = figures.grid([[PICTURE] * 2], title="run trained/" + "section.key=value, " * 8)
    figure.canvas.draw()
    box = figure._suptitle.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.x1


def test_captions_keep_to_the_width_of_their_pictures():
    long = "a very long caption of a picture that does not fit into one line of it"
    figure = figures.grid([[PICTURE] * 3], captions=[[long] * 3], size=2)
    figure.canvas.draw()
    boxes = [axis.xaxis.label.get_window_extent() for axis in figure.axes]
    assert all(left.x1 <= right.x0 for left, right in zip(boxes, boxes[1:], strict=False))


def test_maps_share_a_scale_and_none_is_black():
    values = np.linspace(0.1, 0.9, 16).reshape(4, 4)
    figure = figures.heats([[PICTURE, values, values / 2]], [["", "cat", "dog"]], "cosine")
    *panels, bar = figure.axes
    assert all(axis.images[0].get_array()[..., :3].mean() > 30 for axis in panels)
    assert bar.get_ylabel() == "cosine" and {"cat", "dog"} <= set(texts(figure))
    assert np.allclose(bar.get_ylim(), np.quantile([values, values / 2], [0.01, 0.99]))


def test_names_stand_on_large_regions_and_the_legend_has_the_others():
    labels = np.zeros((20, 20), int)
    labels[5:7, 5:7], labels[:, 15:] = 1, 2
    figure = figures.segmentations([(np.zeros((20, 20, 3)), labels)], ["picture", "truth"], ["sky", "car", "tree"], [["", "mIoU 1%"]])
    assert [text.get_text() for text in figure.axes[1].texts] == ["sky", "tree"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["car"]
    assert figure.axes[1].texts[1].get_ha() == "right"  # away from the edge


def test_correspondences_mark_the_positive_pixel():
    found = {
        "similarity": np.arange(16.0).reshape(1, 4, 4),
        "object": np.ones((1, 4, 4), bool),
        "region": np.zeros((1, 4, 4), bool),
        "positive": np.array([6]),
        "negative": np.array([0]),
    }
    figure = figures.correspondences([np.zeros((8, 8, 3), np.uint8)], ["a cat"], found, [0], "run")
    x, y = figure.axes[3].lines[0].get_data()
    assert (list(x), list(y)) == ([4.5], [2.5])  # row 1, column 2 of blocks of 2 x 2 pixels
    assert {"S = 6.00; largest 15.00", "for “a cat”", "run"} <= set(texts(figure))


def test_curves_have_labels_and_units():
    history = pd.DataFrame({"step": [0, 1] * 2, "seed": [0, 0, 1, 1], "epoch": 0, "lr": 0, "loss": 3.0, "object": 1.0, "pixel": 2.0})
    history = history.assign(gate0=[0, 1, 0, -1], gate1=0)
    left, right = curves.training(history).axes
    assert (left.get_xlabel(), right.get_xlabel()) == ("step", "step") and left.get_ylabel() == "loss"
    assert [text.get_text() for text in left.get_legend().get_texts()] == ["sum", "object", "pixel"]
    assert sorted(line.get_ydata()[-1] for line in right.lines if line.get_ydata().any()) == pytest.approx([-np.tanh(1), np.tanh(1)])


def test_the_threshold_that_is_used_and_the_best_one_are_named():
    curve = pd.DataFrame({"benchmark": "street", "threshold": [0.2, 0.4, 0.6], "mIoU": [10.0, 30.0, 20.0]})
    found = texts(curves.thresholds(curve, {"street": 0.6}))
    assert "street: best 30.0% at 0.4" in found and "street: this run's threshold, 0.6" in found


def test_a_table_of_pictures_fills_its_last_row():
    figure = figures.picture_grid([PICTURE] * 5, list("abcde"), 3)
    assert len(figure.axes) == 6 and figure.axes[5].images[0].get_array().min() == 255 and set("abcde") <= set(texts(figure))
