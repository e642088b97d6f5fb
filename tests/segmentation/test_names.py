"""Class lists as people have them, and classes with several names."""

import pytest
import torch
from tiny import changed, picture

from ovseg import Segmenter
from ovseg.segmentation.names import merged, read_classes

CLASSES = ["cat; kitten; young cat", "sofa", "tree; bush"]
SINGLE = ["cat", "kitten", "young cat", "sofa", "tree", "bush"]
OF_CLASS = [slice(0, 3), slice(3, 4), slice(4, 6)]  # in SINGLE


@pytest.mark.parametrize("text, classes", [
    ("background\ncar ;  automobile\n\n tall tree \n", ["background", "car; automobile", "tall tree"]),
    ("_background_\r\ncar\r\ncat", ["background", "car", "cat"]),
    ("\ufeffBackground\ncar", ["background", "car"]),
    ("0: background\n1: car; automobile\n\n2: 3 doors", ["background", "car; automobile", "3 doors"]),
    ("0\tcar\n1\ttall tree", ["car", "tall tree"]),
    ("3 doors\nsofa's\n猫", ["3 doors", "sofa's", "猫"]),
])  # fmt: skip
def test_lists_whose_meaning_is_certain_are_read(tmp_path, text, classes):
    (tmp_path / "classes.txt").write_bytes(text.encode())
    assert read_classes(tmp_path / "classes.txt") == classes


@pytest.mark.parametrize("text, message", [
    ("car\ncat, kitten", "line 2, 'cat, kitten', holds ',': .*; between them"),
    ("car\n\ncat\t2", r"line 3, 'cat\\t2', holds '\\t'"),
    ('"car"\n"cat"', "line 1, '\"car\"', holds '\"'"),
    ("'car'\n'cat'", "line 1, .* holds \"'\""),
    ('["car", "cat"]', "line 1, .* holds '\\['"),
    ("1: car\n2: cat", "line 1: the lines have indices"),
    ("unlabeled\ncar", "line 1, 'unlabeled': no class: write 'background' .* 255"),
    ("car\nBackground", "line 2, 'Background': 'background' must be the first class"),
    ("background; sky\ncar", "line 1, .* without other names"),
    ("car\n\ncat; CAR", "line 3, 'cat; CAR': 'CAR' is listed twice, the first time in line 1"),
    ("car\ncat;", "line 2, 'cat;', holds ';': .*; between them"),
    ("1 background\n2 car", "line 1: the lines have indices, which must be 0, 1, 2"),
    ("0 0 0 background\n128 0 0 car", "line 2: the lines have indices"),
    ("- car\n- cat", "line 1, '- car', holds '- '"),
    ("car\ncat|kitten", r"line 2, .* holds '\|'"),
    ("car\n\udce9t\xe9", "is not UTF-8"),
    ("car\n", "holds 1 classes: must be at least 2, one per line"),
])  # fmt: skip
def test_other_lists_are_refused_with_the_line_and_the_cure(tmp_path, text, message):
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(ValueError, match=message):
        read_classes(tmp_path / "classes.txt")


def test_max_scores_a_class_by_the_best_of_its_names_in_each_embedding(clip, decoder):
    image = picture(40, 60)
    cosines = Segmenter(clip, decoder, changed()).segment(image, [*SINGLE, "sky"]).grid.mosaic
    best = torch.cat([*(cosines[rows].amax(0, keepdim=True) for rows in OF_CLASS), cosines[6:]])
    for averaged, expected in (("cosine", best), ("softmax", (changed().scale * best).softmax(0))):
        result = Segmenter(clip, decoder, changed(synonyms="max", averaged=averaged)).segment(image, CLASSES, True, 0.4, ["sky"])
        torch.testing.assert_close(result.grid.mosaic, expected)
        assert result.names == ("background", "cat", "sofa", "tree") and result.scores.shape == (3, 40, 60)


def test_mean_scores_a_class_by_the_mean_embedding_of_its_names(clip, decoder):
    of_names, segmenter = clip.embed_classes(SINGLE, changed().templates).double(), Segmenter(clip, decoder, changed(synonyms="mean"))
    sums = torch.stack([of_names[rows].sum(0) for rows in OF_CLASS])
    torch.testing.assert_close(segmenter.embed_classes(tuple(CLASSES)).double(), sums / sums.norm(dim=1, keepdim=True), atol=1e-6, rtol=0)
    assert segmenter.segment(picture(32, 32), CLASSES).names == ("cat", "sofa", "tree")
    assert torch.equal(merged(of_names, SINGLE, "mean"), of_names) and torch.equal(merged(of_names, SINGLE, "max"), of_names)
