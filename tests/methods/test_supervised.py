"""The supervised reference: its loss by loops, label maps cropped as images are, and that it learns from labels alone."""

import io
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import BATCH, PAIRS, WIDTH, P, changed, data

from ovseg.methods import supervised, training
from ovseg.methods.supervised import IGNORED, Labels, Source

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_loss_is_cross_entropy_over_labelled_pixels_then_images():
    rng = np.random.default_rng(0)
    pixels, classes = torch.from_numpy(rng.normal(size=(3, 5, 4))), torch.from_numpy(rng.normal(size=(2, 4)))
    classes /= classes.norm(dim=1, keepdim=True)
    labels = torch.tensor([[0, 1, IGNORED, 1, 0], [IGNORED] * 4 + [1], [IGNORED] * 5])
    by_image = []
    for image, of_image in zip(pixels, labels, strict=True):
        found = []
        for v, label in zip(image, of_image, strict=True):
            if label != IGNORED:
                cosines = [float(v @ c / v.norm()) / 0.07 for c in classes]
                found.append(-cosines[label] + math.log(sum(map(math.exp, cosines))))
        by_image.append(sum(found) / max(1, len(found)))
    (loss,) = supervised.losses(pixels, labels, classes, 0.07).values()
    assert loss.item() == pytest.approx(sum(by_image) / 3, rel=1e-9)


def shard(path, samples):
    """A tar of label maps: {key: {extension: (H, W) array}}."""
    with tarfile.open(path, "w") as tar:
        for key, files in samples.items():
            for extension, labels in files.items():
                out = io.BytesIO()
                Image.fromarray(labels).save(out, "PNG")
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = out.tell()
                tar.addfile(member, io.BytesIO(out.getvalue()))
    return str(path)


@pytest.fixture
def classes(tmp_path):
    np.save(tmp_path / "classes.npy", np.eye(3, 4, dtype=np.float32))
    return str(tmp_path / "classes.npy")


def test_a_label_map_is_cropped_as_its_image_and_read_at_the_middle_of_each_square(tmp_path, classes):
    wide = np.full((4, 8), 7, np.uint8)  # 7: outside of the central square
    wide[:, 2:6] = np.kron([[0, 1], [2, 255]], np.ones((2, 2))).astype(np.uint8)
    ones = np.full((2, 2), 1, np.uint8)
    path = shard(tmp_path / "s.tar", {"a": {"seg.png": wide}, "left out": {"seg.png": wide}, "b": {"seg.png": ones}})
    maps, embeddings = supervised.open_labels(Source("seg.png", False, classes), [path], ["s/b", "s/a"], 2)
    assert maps.tolist() == [[[1, 1], [1, 1]], [[0, 1], [2, IGNORED]]]
    assert torch.equal(embeddings, torch.eye(3, 4))
    maps, _ = supervised.open_labels(Source("seg.png", True, classes), [path], ["s/b", "s/a"], 2)  # 0 is the background
    assert maps.tolist() == [[[0, 0], [0, 0]], [[IGNORED, 0], [1, IGNORED]]]


def test_missing_label_maps_and_unknown_labels_are_named(tmp_path, classes):
    path = shard(tmp_path / "s.tar", {"a": {"seg.png": np.full((2, 2), 3, np.uint8)}})
    with pytest.raises(ValueError, match=r"s/a: its label map holds 3; allowed are 0\.\.2"):
        supervised.open_labels(Source("seg.png", False, classes), [path], ["s/a"], 2)
    assert (supervised.open_labels(Source("seg.png", True, classes), [path], ["s/a"], 2).maps == 2).all()
    with pytest.raises(ValueError, match="s/gone: the shards have changed since `prepare` read them"):
        supervised.open_labels(Source("seg.png", True, classes), [path], ["s/gone", "s/a"], 2)
    colours = shard(tmp_path / "c.tar", {"a": {"seg.png": np.zeros((2, 2, 3), np.uint8)}})
    with pytest.raises(ValueError, match="c/a: seg.png: a label map of mode RGB"):
        supervised.open_labels(Source("seg.png", True, classes), [colours], ["c/a"], 2)
    with pytest.raises(ValueError, match="s/a has no other.png"):
        supervised.open_labels(Source("other.png", False, classes), [path], ["s/a"], 2)


def test_it_learns_what_label_maps_say_whatever_the_texts_are(tmp_path):
    images, bank, texts = data()
    rng = np.random.default_rng(0)
    classes = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(3, WIDTH)).astype(np.float32)), dim=1)
    features = torch.from_numpy(images.array).float().repeat_interleave(2, 2).repeat_interleave(2, 3)
    maps = (features[:, :3].argmax(1)).numpy().astype(np.uint8)  # which of three features is largest: a rule to be learnt
    settings = changed(method="supervised", epochs=40.0, checkpoint_steps=1000)

    def run(name, texts, labels):
        return training.train(settings, 0, {"supervised": P.supervised}, images, bank, texts, Path(tmp_path, name), labels=labels)

    learner, history, _ = run("a.pt", texts, Labels(maps, classes))
    again, _, _ = run("b.pt", np.full_like(texts, np.nan), Labels(maps, classes))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in learner.state_dict().items())
    assert len(history) == 40 * PAIRS // BATCH and {"loss", "label"} < set(history[0]) and "object" not in history[0]

    def accuracy(decoder):
        with torch.no_grad():
            found = torch.einsum("ndhw,cd->nchw", decoder(torch.from_numpy(images.array).float()), classes).argmax(1)
        return (found.numpy() == maps).mean()

    assert accuracy(learner.decoder) > 0.6 > 0.45 > accuracy(training.Decoder(WIDTH).eval())
    other, _, _ = run("c.pt", texts, Labels((maps + 1) % 3, classes))
    assert accuracy(other.decoder) < 0.3


def test_a_training_depends_on_its_label_maps():
    arguments = changed(method="supervised"), 0, {"supervised": P.supervised}, *data()
    one, other = (Labels(np.full((PAIRS, 8, 8), label, np.uint8), torch.eye(3, WIDTH)) for label in (0, 1))
    renamed = Labels(one.maps, -one.classes)
    marks = {training.fingerprint(*arguments, labels) for labels in (one, other, renamed, None)}
    assert len(marks) == 4 and training.fingerprint(*arguments, one) in marks
