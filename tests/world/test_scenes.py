"""The rendered world: scenes, their captions, and the shards they are written to."""

import io
import json
import re

import numpy as np
import pytest
from tiny import P, contents

from ovseg.data import shards
from ovseg.data.captions import nouns
from ovseg.data.images import read_label_map
from ovseg.world import scenes
from ovseg.world.scenes import BENCHMARK, CALIBRATION, CLASSES, PRETRAIN, STUFF, THINGS, TRAIN, render

SETTINGS = P.scenes.model_copy(update={"pairs": 3, "pictures": 3, "size": 32})


def changed(**values):
    return SETTINGS.model_copy(update=values)


def named(caption):
    """The classes a caption names, as a list: a class named twice is there twice."""
    return [word for word in re.findall("[a-z]+", caption) if word in CLASSES]


def test_the_same_numbers_give_the_same_scene_and_others_another():
    first, again = (render(changed(seed=3), TRAIN, 7) for _ in range(2))
    assert first.image.tobytes() == again.image.tobytes() and first.labels.tobytes() == again.labels.tobytes()
    assert (first.caption, first.present) == (again.caption, again.present)
    assert render(changed(seed=1), TRAIN, 7, offset=2).image.tobytes() == first.image.tobytes()
    others = [(3, TRAIN, 8), (1, TRAIN, 7), *((3, split, 7) for split in (TRAIN, BENCHMARK, PRETRAIN, CALIBRATION))]
    assert len({render(changed(seed=seed), *numbers).image.tobytes() for seed, *numbers in others}) == len(others)


def test_scenes_hold_stuff_and_up_to_the_given_number_of_things_and_all_classes_occur():
    counts, seen = set(), set()
    for index in range(250):
        scene = render(changed(max_things=2), TRAIN, index)
        labels, pixels = np.unique(scene.labels, return_counts=True)
        counts.add(int((labels < len(THINGS)).sum()))
        assert labels.max() >= len(THINGS)
        assert sorted(scene.present) == sorted(CLASSES[label] for label, n in zip(labels, pixels, strict=True) if n >= 0.01 * 32 * 32)
        seen |= set(scene.present)
    assert {1, 2} <= counts <= {0, 1, 2} and seen == set(CLASSES)


def test_captions_name_what_is_present_but_for_the_given_noise():
    for index in range(40):
        noises = ((0, 0, 0), (0, 1, 0), (1, 1, 0), (0, 0, 1))
        quiet, things, one, more = (render(changed(omit=o, omit_stuff=s, invent=i), TRAIN, index) for o, s, i in noises)
        assert sorted(named(quiet.caption)) == sorted(quiet.present)
        assert sorted(named(things.caption)) == sorted(set(quiet.present) & set(THINGS)) or not set(quiet.present) & set(THINGS)
        assert len(named(one.caption)) == 1 and set(named(one.caption)) <= set(quiet.present)
        assert len(set(named(more.caption)) - set(quiet.present)) == 1 and len(named(more.caption)) == len(quiet.present) + 1
        assert np.array_equal(more.image, quiet.image) and np.array_equal(more.labels, quiet.labels)  # noise changes no pixel


@pytest.mark.parametrize("template", scenes.CAPTIONS)
def test_the_tagger_finds_each_class_in_each_caption(template):
    for index, name in enumerate(CLASSES):
        names = [name, *(CLASSES[(index + step) % len(CLASSES)] for step in (5, 11))]
        for order in (names[:1], names, names[::-1]):
            *phrases, last = [f"the {n}" if n in STUFF else f"{'an' if n[0] in 'aeiou' else 'a'} {n}" for n in order]
            assert list(nouns(template.format(", ".join(phrases) + " and " + last if phrases else last))) == order


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The shards, written by other processes."""
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "PER_SHARD", 2)
        scenes.render_shards(SETTINGS, folder)
    return folder


def test_the_same_settings_write_the_same_bytes_over_other_shards(written, tmp_path, monkeypatch):
    monkeypatch.setattr(scenes, "PER_SHARD", 2)
    monkeypatch.setattr(scenes, "parallel", lambda function, items, label: map(function, items))
    for name in ("train-00000.tar", "train-00009.tar", "benchmark-00001.tar.part"):  # of an earlier run
        (tmp_path / name).write_bytes(b"other")
    scenes.render_shards(SETTINGS, tmp_path)
    assert contents(tmp_path) == contents(written)
    names = [f"{split}-0000{number}.tar" for split in ("benchmark", "calibration", "train") for number in (0, 1)]
    assert sorted(contents(written)) == [*names[:4], "scenes.txt", "things.txt", *names[4:]]
    scenes.render_shards(SETTINGS.model_copy(update={"pairs": 0}), tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == names[:4]


def test_shards_hold_what_is_rendered(written):
    seen = []
    for split, name in ((TRAIN, "train"), (BENCHMARK, "benchmark"), (CALIBRATION, "calibration")):
        samples = [sample for path in sorted(written.glob(f"{name}-*.tar")) for sample in shards.read_samples(path)]
        assert [sample["__key__"] for sample in samples] == ["00000000", "00000001", "00000002"]
        for index, sample in enumerate(samples):
            image, caption = shards.decode(sample)
            assert image.size == ((32, 32) if split == TRAIN else ((40, 32), (32, 40))[index % 2])
            scene = render(SETTINGS, split, index, (image.height, image.width))
            assert caption == scene.caption == json.loads(sample["json"])["caption"]
            assert np.array_equal(read_label_map(io.BytesIO(sample["scenes.png"])), scene.labels)
            assert np.array_equal(read_label_map(io.BytesIO(sample["things.png"])), (scene.labels + 1) * (scene.labels < len(THINGS)))
            assert np.abs(np.asarray(image).astype(float) - scene.image).mean() < 6  # JPEG
            seen.append(sample["jpg"])
    assert len(set(seen)) == 9
    things, both = ((written / f"{name}.txt").read_text().split("\n")[:-1] for name in ("things", "scenes"))
    assert things == ["background", *THINGS] and tuple(both) == CLASSES
