"""Class lists as people have them, and classes with several names."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import bilinear, changed, picture

from ovseg import Segmenter
from ovseg.segmentation.names import check_names, read_classes
from ovseg.segmentation.windows import Scores

CLASSES = ["cat; kitten; young cat", "sofa", "tree; bush"]
SINGLE = ["cat", "kitten", "young cat", "sofa", "tree", "bush"]
FIRST, END = [0, 3, 4], [3, 4, 6]  # of each class in SINGLE


@pytest.mark.parametrize("text, classes", [
    ("background\ncar ;  automobile\n\n tall tree \n", ["background", "car; automobile", "tall tree"]),
    ("_background_\r\ncar\r\ncat", ["background", "car", "cat"]),
    ("\ufeffBackground\ncar", ["background", "car"]),
    ("0: background\n1: car; automobile\n\n2: 3 doors", ["background", "car; automobile", "3 doors"]),
    ("0\tcar\n1\ttall tree", ["car", "tall tree"]),
    ("0,car\n1,cat", ["car", "cat"]),
    ("2 doors\n3 doors", ["2 doors", "3 doors"]),
    ("sofa's\nпес\n猫", ["sofa's", "пес", "猫"]),
])  # fmt: skip
def test_lists_whose_meaning_is_certain_are_read(tmp_path, text, classes):
    (tmp_path / "classes.txt").write_bytes(text.encode())
    assert read_classes(tmp_path / "classes.txt") == classes


@pytest.mark.parametrize("text, message", [
    ("car\ncat, kitten", "line 2, 'cat, kitten', holds ',': .*; between them"),
    ("car,cat", "line 1, 'car,cat', holds ',': must be a class's name"),
    ("car\n\ncat\t2", r"line 3, 'cat\\t2', holds '\\t'"),
    ('"car"\n"cat"', "line 1, '\"car\"', holds '\"'"),
    ("'car'\n'cat'", "line 1, .* holds \"'\""),
    ('["car", "cat"]', "line 1, .* holds '\\['"),
    ('{\n"0": "car"\n}', "line 1, '{', holds '{'"),
    ("1: car\n2: cat", "line 1, '1: car', holds '1:'"),
    ("unlabeled\ncar", "line 1, 'unlabeled': no class: write 'background' .* 255"),
    ("__ignore__\n_background_\ncar", "line 1, '__ignore__': no class"),
    ("car\nBackground", "line 2, 'Background': 'background' must be the first class"),
    ("background; sky\ncar", "line 1, .* without other names"),
    ("car\n\ncat; CAR", "line 3, 'cat; CAR': 'CAR' is listed twice, the first time in line 1"),
    ("cat\ncar; auto; car", "line 2, .*: 'car' is listed twice, the first time in line 2"),
    ("car\ncat;", "line 2, 'cat;': a name is empty"),
    ("car\n", "holds 1 classes: must be at least 2, one per line"),
    (" \n", "holds 0 classes"),
])  # fmt: skip
def test_other_lists_are_refused_with_the_line_and_the_cure(tmp_path, text, message):
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        read_classes(tmp_path / "classes.txt")
    assert len(str(caught.value).splitlines()) == 1


def test_names_of_a_call_are_distinct_over_all_synonyms():
    assert check_names(["car ;automobile", "sky"]) == (["car; automobile", "sky"], [])
    assert "tree" not in check_names("apple; tree", background=True)[1]  # the default others
    for names, others in ((["car; auto", "auto"], None), (["car; auto"], ["sky; car"]), (["car; car", "sky"], None)):
        with pytest.raises(ValueError, match="must be distinct: '(car|auto)' occurs twice"):
            check_names(names, True, others)
    for wrong in ("car;", ";", "car;;auto"):
        with pytest.raises(ValueError, match="must be non-empty strings"):
            check_names([wrong, "sky"])
    with pytest.raises(ValueError, match="must not include 'background'"):
        check_names(["sky; background", "car"], background=True)


@pytest.mark.parametrize("averaged", ["cosine", "softmax"])
def test_max_scores_a_class_by_the_best_of_its_names_in_each_embedding(clip, decoder, averaged):
    image = picture(40, 60)
    plain = Segmenter(clip, decoder, changed()).segment(image, SINGLE)
    result = Segmenter(clip, decoder, changed(synonyms="max", averaged=averaged)).segment(image, CLASSES, True, 0.4, ["sky"])
    of_sky = Segmenter(clip, decoder, changed()).segment(image, ["sky", "sea"]).grid.mosaic[:1]
    cosines = torch.cat([*(plain.grid.mosaic[a:b].amax(0, keepdim=True) for a, b in zip(FIRST, END, strict=True)), of_sky])
    expected = (changed().scale * cosines.double()).softmax(0) if averaged == "softmax" else cosines.double()
    torch.testing.assert_close(result.grid.mosaic.double(), expected, atol=1e-5, rtol=0)
    share = Scores(expected.float(), result.grid.down, result.grid.across).rows()
    share = share if averaged == "softmax" else (changed().scale * share).softmax(0)
    best, second = share.sort(0, descending=True).values[:2]
    clear = ((best - second > 1e-3) & ((best - 0.4).abs() > 1e-3)).numpy()
    labels = torch.where((best >= 0.4) & (share.argmax(0) < 3), share.argmax(0) + 1, 0).numpy()
    assert clear.mean() > 0.8 and np.array_equal(result.labels[clear], labels[clear]) and 0 < (labels == 0).mean() < 1
    assert result.names == ("background", "cat", "sofa", "tree") and result.scores.shape == (3, 40, 60)


def test_mean_scores_a_class_by_the_mean_embedding_of_its_names(clip, decoder):
    pixels, segmenter = picture(32, 32), Segmenter(clip, decoder, changed(synonyms="mean"))
    of_names = clip.embed_classes(SINGLE, changed().templates)
    with torch.no_grad():
        embeddings = decoder(clip.encode_dense(pixels[None]))[0]
    classes = [sum(of_names[a:b]) for a, b in zip(FIRST, END, strict=True)]
    cosines = [torch.einsum("dhw,d->hw", F.normalize(embeddings, dim=0), F.normalize(total, dim=0)).numpy() for total in classes]
    result = segmenter.segment(pixels, CLASSES)
    np.testing.assert_allclose(result.scores, [bilinear(cosine, 32, 32) for cosine in cosines], atol=1e-4)
    assert result.names == ("cat", "sofa", "tree")


def test_with_one_name_for_each_class_both_are_the_same_to_the_last_digit(clip, decoder):
    scores = [Segmenter(clip, decoder, changed(synonyms=how)).segment(picture(40, 60), SINGLE).scores for how in ("mean", "max")]
    assert np.array_equal(*scores)
