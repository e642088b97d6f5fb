import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ovseg import params
from ovseg.data import shards
from ovseg.data.captions import nouns
from ovseg.world import scenes

SETTINGS = params.load(path=Path(__file__).parents[2] / "params.yaml").scenes
INDICES = range(40)
CERTAIN = {"omit": 0.0, "omit_stuff": 0.0, "invent": 0.0}


def named(caption):
    """The classes a caption names, as a list: a class named twice is there twice."""
    return [word for word in re.findall("[a-z]+", caption) if word in scenes.CLASSES]


def present_by_count(labels):
    """Names of the classes that cover at least 1% of a label map, counted a pixel at a time."""
    counts = {}
    for label in labels.ravel().tolist():
        counts[label] = counts.get(label, 0) + 1
    return {scenes.CLASSES[label] for label, count in counts.items() if count / labels.size >= 0.01}


def test_the_same_numbers_give_the_same_scene():
    first, again = (scenes.render(3, scenes.TRAIN, 7, 48, 48) for _ in range(2))
    assert first.image.tobytes() == again.image.tobytes() and first.labels.tobytes() == again.labels.tobytes()
    assert first.caption == again.caption and first.present == again.present


def test_other_numbers_give_other_scenes():
    numbers = [(0, scenes.TRAIN, 0), (1, scenes.TRAIN, 0), (0, scenes.TRAIN, 1), (0, scenes.BENCHMARK, 0)]
    numbers += [(0, scenes.PRETRAIN, 0), (0, scenes.CALIBRATION, 0)]
    images = {scenes.render(*three, 48, 48).image.tobytes() for three in numbers}
    assert len(images) == len(numbers)


@pytest.mark.parametrize("height, width", [(48, 48), (32, 45), (61, 33)])
def test_image_and_labels_have_the_asked_size(height, width):
    for index in range(10):
        scene = scenes.render(0, scenes.TRAIN, index, height, width)
        assert scene.image.shape == (height, width, 3) and scene.image.dtype == np.uint8
        assert scene.labels.shape == (height, width) and scene.labels.dtype == np.uint8
        assert scene.labels.max() < len(scenes.CLASSES)
        assert scene.image.std() > 1


def test_present_is_what_covers_a_hundredth_of_the_labels():
    for index in INDICES:
        scene = scenes.render(1, scenes.TRAIN, index, 40, 40)
        assert set(scene.present) == present_by_count(scene.labels) and len(set(scene.present)) == len(scene.present)


def test_a_scene_holds_stuff_and_no_more_things_than_asked():
    kinds = []
    for index in INDICES:
        labels = scenes.render(0, scenes.TRAIN, index, 48, 48, max_things=2).labels
        things = set(labels[labels < len(scenes.THINGS)].tolist())
        kinds.append(len(things))
        assert len(things) <= 2
        assert (labels >= len(scenes.THINGS)).any()
    assert {1, 2} <= set(kinds)


def test_every_class_shows_up():
    seen = {name for index in range(250) for name in scenes.render(0, scenes.TRAIN, index, 32, 32).present}
    assert seen == set(scenes.CLASSES)


def test_a_caption_without_noise_names_what_is_present():
    for index in INDICES:
        scene = scenes.render(0, scenes.TRAIN, index, 32, 32, **CERTAIN)
        assert sorted(named(scene.caption)) == sorted(scene.present)


def test_a_caption_that_omits_everything_still_names_one_class():
    for index in INDICES:
        scene = scenes.render(0, scenes.TRAIN, index, 32, 32, omit=1.0, omit_stuff=1.0, invent=0.0)
        assert len(named(scene.caption)) == 1 and set(named(scene.caption)) <= set(scene.present)


def test_things_and_stuff_are_omitted_apart():
    for index in INDICES:
        scene = scenes.render(0, scenes.TRAIN, index, 32, 32, omit=0.0, omit_stuff=1.0, invent=0.0)
        things = [name for name in scene.present if name in scenes.THINGS]
        if things:
            assert sorted(named(scene.caption)) == sorted(things)


@pytest.mark.parametrize("omit", [0.0, 1.0])
def test_an_invented_class_is_one_that_is_absent(omit):
    for index in INDICES:
        scene = scenes.render(0, scenes.TRAIN, index, 32, 32, omit=omit, omit_stuff=omit, invent=1.0)
        there = [name for name in named(scene.caption) if name in scene.present]
        assert len(there) == (1 if omit else len(scene.present)) and len(named(scene.caption)) == len(there) + 1


def test_caption_noise_changes_no_pixel():
    noisy, exact = (scenes.render(0, scenes.TRAIN, 5, 32, 32, **noise) for noise in ({"invent": 1.0}, CERTAIN))
    assert np.array_equal(noisy.image, exact.image) and np.array_equal(noisy.labels, exact.labels)


@pytest.mark.parametrize("template", scenes.CAPTIONS)
def test_nouns_of_captions_are_the_classes_they_name(template):
    def caption(*names):  # a minimal stand-in for what the world writes, to reach every template
        phrases = [f"the {name}" if name in scenes.STUFF else f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in names]
        return template.format(", ".join(phrases[:-1]) + " and " + phrases[-1] if len(phrases) > 1 else phrases[0])

    for index, name in enumerate(scenes.CLASSES):
        others = [scenes.CLASSES[(index + step) % len(scenes.CLASSES)] for step in (5, 11)]
        for names in ((name,), (name, *others), (others[0], name, others[1]), (*others, name)):
            assert nouns(caption(*names)) == names


def test_nouns_of_rendered_captions_are_the_classes_they_name():
    for index in INDICES:
        caption = scenes.render(0, scenes.TRAIN, index, 32, 32).caption
        assert nouns(caption) == tuple(named(caption))


def one_process(function, items, label):
    return map(function, items)


@pytest.fixture(scope="module")
def settings():
    return SETTINGS.model_copy(update={"pairs": 3, "pictures": 3, "size": 32})


@pytest.fixture(scope="module")
def written(settings, tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scenes, "PER_SHARD", 2)
        patch.setattr(scenes, "parallel", one_process)
        scenes.render_shards(settings, folder, tmp_path_factory.mktemp("kept"))
    return folder


def samples(folder, name):
    return [sample for path in sorted(folder.glob(f"{name}-*.tar")) for sample in shards.read_samples(path)]


def png(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def test_the_same_settings_write_the_same_bytes_in_any_process(settings, written, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(scenes, "PER_SHARD", 2)
    scenes.render_shards(settings, tmp_path, tmp_path_factory.mktemp("kept"))  # in spawned processes, unlike `written`
    assert [path.name for path in sorted(tmp_path.iterdir())] == [path.name for path in sorted(written.iterdir())]
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (written / path.name).read_bytes(), path.name


def test_shards_hold_the_asked_numbers_of_pairs_and_pictures(written):
    names = [path.name for path in sorted(written.glob("*.tar"))]
    assert names == [f"{split}-{number:05d}.tar" for split in ("benchmark", "calibration", "train") for number in range(2)]
    for split in ("train", "benchmark", "calibration"):
        assert [sample["__key__"] for sample in samples(written, split)] == ["00000000", "00000001", "00000002"]


def test_shards_hold_what_is_rendered(written, settings):
    for split, name in ((scenes.TRAIN, "train"), (scenes.BENCHMARK, "benchmark"), (scenes.CALIBRATION, "calibration")):
        for index, sample in enumerate(samples(written, name)):
            image, caption = shards.decode(sample)
            noise = {key: getattr(settings, key) for key in ("max_things", "omit", "omit_stuff", "invent")}
            scene = scenes.render(settings.seed, split, index, image.height, image.width, **noise)
            assert caption == scene.caption == json.loads(sample["json"])["caption"]
            assert np.array_equal(png(sample["scenes.png"]), scene.labels)
            assert np.abs(np.asarray(image).astype(float) - scene.image).mean() < 6  # JPEG


def test_training_pictures_are_square_and_benchmark_pictures_are_not(written):
    def sizes(name):
        return [shards.decode_image(sample).size for sample in samples(written, name)]

    assert sizes("train") == [(32, 32)] * 3
    for name in ("benchmark", "calibration"):
        assert sorted(set(sizes(name))) == [(32, 40), (40, 32)]


def test_calibration_pictures_are_none_of_the_others_and_change_none(settings, written, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(scenes, "PER_SHARD", 2)
    monkeypatch.setattr(scenes, "parallel", one_process)
    monkeypatch.setattr(scenes, "CALIBRATION", 9)
    scenes.render_shards(settings, tmp_path, tmp_path_factory.mktemp("kept"))
    for path in written.iterdir():
        assert (path.read_bytes() == (tmp_path / path.name).read_bytes()) != path.name.startswith("calibration"), path.name
    images = {name: {sample["jpg"] for sample in samples(written, name)} for name in ("train", "benchmark", "calibration")}
    assert len(set.union(*images.values())) == sum(map(len, images.values())) == 9


def test_both_label_maps_say_the_same(written):
    things, both = ((written / f"{name}.txt").read_text().split("\n")[:-1] for name in ("things", "scenes"))
    assert things[0] == "background" and set(things[1:]) == set(scenes.THINGS) and tuple(both) == scenes.CLASSES
    for sample in samples(written, "benchmark"):
        for thing, label in zip(png(sample["things.png"]).ravel(), png(sample["scenes.png"]).ravel(), strict=True):
            assert things[thing] == (both[label] if both[label] in scenes.THINGS else "background")


@pytest.fixture
def rendered(settings, tmp_path, monkeypatch):
    """Renders into tmp_path/world and returns the names of the shards that were rendered then."""
    monkeypatch.setattr(scenes, "PER_SHARD", 2)
    monkeypatch.setattr(scenes, "parallel", one_process)
    names, real = [], scenes._render_shard

    def render_shard(part, *job):
        names.append(part.name.removesuffix(".tar.part"))
        real(part, *job)

    def write(**values):
        names.clear()
        scenes.render_shards(settings.model_copy(update=values), tmp_path / "world", tmp_path / "kept")
        return sorted(names)

    monkeypatch.setattr(scenes, "_render_shard", render_shard)
    return write


ALL = [f"{split}-{number:05d}" for split in ("benchmark", "calibration", "train") for number in range(2)]


def test_what_an_earlier_run_rendered_alike_stays_and_anything_else_does_not(rendered, written, tmp_path):
    assert rendered() == ALL and rendered() == []
    assert rendered(pairs=2) == [] and not (tmp_path / "world/train-00001.tar").exists()
    assert rendered() == ["train-00001"]
    assert rendered(pairs=4) == ["train-00001"]  # the shard that is longer now
    assert rendered() == ["train-00001"]
    assert rendered(omit=0.9) == ALL and rendered() == ALL
    damaged = tmp_path / "world/benchmark-00001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-1024] + bytes(1023) + b"x")  # as long as it was
    assert rendered() == ["benchmark-00001"]
    (tmp_path / "world/train-00000.tar").unlink()
    assert rendered() == ["train-00000"]
    for path in written.iterdir():
        assert path.read_bytes() == (tmp_path / "world" / path.name).read_bytes()


def test_other_code_renders_again(rendered, monkeypatch):
    assert rendered() == ALL
    monkeypatch.setattr(scenes, "code", lambda *files: "other")
    assert rendered() == ALL
