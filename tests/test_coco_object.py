import numpy as np
import pytest
from PIL import Image

from ovseg import params
from ovseg.benchmarks import coco_object
from ovseg.benchmarks.datasets import open_benchmark
from ovseg.benchmarks.layouts import CLASSES

# COCO's category ids, and what stuffthingmaps hold of them: the id less 1
IDS = {"person": 1, "fire hydrant": 11, "stop sign": 13, "giraffe": 25, "backpack": 27, "tv": 72, "toothbrush": 90}
STUFF, UNLABELLED = (91, 92, 181), 255


def names():
    return (CLASSES / "coco_object.txt").read_text().splitlines()


def save(folder, name, labels, split="val2017"):
    at = folder / "annotations" / split
    at.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(labels)).save(at / name)
    return at / name


def test_category_ids_become_classes():
    for name, identifier in IDS.items():
        assert coco_object.from_raw(np.array([[identifier - 1]], np.uint8)).tolist() == [[names().index(name)]]


def test_stuff_and_unlabelled_pixels_are_background():
    for convert, stuff in ((coco_object.from_raw, STUFF), (coco_object.from_train_ids, (80, 170))):
        found = convert(np.array([[*stuff, UNLABELLED]], np.uint8))
        assert found.dtype == np.uint8 and not found.any()


def test_all_eighty_things_are_there_once():
    used = [value for value in range(91) if value not in coco_object.UNUSED]
    assert coco_object.from_raw(np.array([used], np.uint8)).tolist() == [list(range(1, 81))]
    assert coco_object.from_train_ids(np.array([range(80)], np.uint8)).tolist() == [list(range(1, 81))]


def test_an_id_that_no_picture_has_is_an_error():
    with pytest.raises(ValueError, match="no map of stuffthingmaps"):
        coco_object.from_raw(np.array([[0, 11]], np.uint8))


def test_both_kinds_of_maps_give_the_same(tmp_path):
    raw = np.array([[0, 12, 24], [89, 91, 255]], np.uint8)
    train_ids = np.array([[0, 11, 23], [79, 80, 255]], np.uint8)
    for number, (name, labels) in enumerate([("1.png", raw), ("1_labelTrainIds.png", train_ids)]):
        target = tmp_path / f"{number}.png"
        coco_object.convert(save(tmp_path, name, labels), target)
        assert np.asarray(Image.open(target)).tolist() == [[1, 12, 24], [80, 0, 0]]


def test_the_original_maps_come_before_those_made_of_them(tmp_path):
    for name in ("7_labelTrainIds.png", "7.png", "5_labelTrainIds.png", "7_instanceTrainIds.png"):
        save(tmp_path, name, np.zeros((2, 2), np.uint8))
    found = coco_object.sources(tmp_path, "val2017")
    assert [(name, path.name) for name, path in found.items()] == [("5", "5_labelTrainIds.png"), ("7", "7.png")]


def test_the_command_writes_maps_that_the_benchmark_reads(tmp_path, capsys):
    save(tmp_path, "9.png", np.array([[0, 255], [89, 91]], np.uint8))
    (tmp_path / "images/val2017").mkdir(parents=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "images/val2017/9.jpg")
    coco_object.main([str(tmp_path)])
    assert "wrote 1 *_instanceTrainIds.png, 0 were there" in capsys.readouterr().out
    ((_, _, labels),) = open_benchmark("coco_object", params.Benchmark(layout="coco_object", folder=str(tmp_path)))
    assert labels.tolist() == [[1, 0], [80, 0]]
    coco_object.main([str(tmp_path)])  # a second run has nothing to do
    assert "wrote 0 *_instanceTrainIds.png, 1 were there" in capsys.readouterr().out


@pytest.mark.parametrize("broken", ["truncated", "colours", "sixteen bits"])
def test_a_broken_map_is_named_and_leaves_nothing_half_written(tmp_path, broken):
    labels = np.random.default_rng(0).integers(0, 10, (40, 40), dtype=np.uint8)
    labels = {"colours": np.stack([labels] * 3, -1), "sixteen bits": labels.astype(np.uint16)}.get(broken, labels)
    source = save(tmp_path, "3.png", labels)
    if broken == "truncated":
        source.write_bytes(source.read_bytes()[:200])
    with pytest.raises(ValueError, match="3.png: ") as error:
        coco_object.convert(source, tmp_path / "3_instanceTrainIds.png")
    assert len(str(error.value).splitlines()) == 1 and not list(tmp_path.glob("*_instance*"))


def test_a_killed_run_leaves_no_map_that_looks_whole(tmp_path, monkeypatch):
    source = save(tmp_path, "3.png", np.zeros((4, 4), np.uint8))
    monkeypatch.setattr(coco_object.os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        coco_object.convert(source, tmp_path / "3_instanceTrainIds.png")
    assert not list(tmp_path.glob("*.png"))


def test_no_maps_are_one_line_that_says_where_to_get_them(tmp_path):
    with pytest.raises(SystemExit, match="no label maps of COCO-Stuff in .*train2017: expected NAME.png .*https://") as error:
        coco_object.main([str(tmp_path), "--split", "train2017"])
    assert len(str(error.value).splitlines()) == 1
