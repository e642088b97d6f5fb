"""Pictures of a benchmark, of training pairs and of files, and the one line that a wrong wish gets."""

import numpy as np
import pytest
from PIL import Image
from small_project import CLASSES, TRUTH, png, write
from tiny import picture

from ovseg.inspection import pictures


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    return write(folder), folder


@pytest.mark.parametrize(("name", "seeds"), [("street", (0, 1)), ("shards", (5, 6))])
def test_a_benchmark_picture_comes_with_its_truth(project, name, seeds):
    p, _ = project
    for index, seed in enumerate(seeds):
        found = pictures.of_benchmark(p.benchmarks, name, index)
        assert np.array_equal(found.image, picture(32, 48, seed=seed)) and list(found.classes) == CLASSES and found.side is None
        assert np.array_equal(found.truth, np.roll(TRUTH, index, 1) if name == "street" else TRUTH)


def test_a_training_pair_is_cropped_as_in_training_with_its_truth(project):
    p, folder = project
    found = pictures.of_pair(p, 1, folder)
    assert found.caption == "caption 1" and found.side == 32
    assert np.array_equal(found.image, picture(32, 48, seed=6)[:, 8:40]) and np.array_equal(found.truth, TRUTH[:, 8:40])


def test_a_file_of_any_mode_is_read(tmp_path):
    grey = picture(20, 30)[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    for wish in (str(tmp_path / "grey.png"), ("grey.png", png(grey))):
        found = pictures.of_file(wish)
        assert found.title == "grey.png" and found.truth is None and np.array_equal(np.asarray(found.image), np.stack([grey] * 3, -1))


def test_a_wrong_wish_gets_one_line_that_says_what_is_allowed(project, tmp_path):
    p, folder = project
    (tmp_path / "words.jpg").write_text("no picture")
    wishes = {
        "picture of street 2: allowed are 0 to 1": lambda: pictures.of_benchmark(p.benchmarks, "street", 2),
        "training pair -1: allowed are 0 to 1": lambda: pictures.of_pair(p, -1, folder),
        "gone.jpg does not exist": lambda: pictures.of_file(str(tmp_path / "gone.jpg")),
        "words.jpg: no picture that can be read": lambda: pictures.of_file(str(tmp_path / "words.jpg")),
        "`prepare` makes it": lambda: pictures.of_pair(p, 0, tmp_path),
    }
    for message, wish in wishes.items():
        with pytest.raises(ValueError, match=message) as error:
            wish()
        assert "\n" not in str(error.value)
