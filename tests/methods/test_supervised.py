"""The supervised reference: its loss by loops, how label maps are read, and that it learns from them alone."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from small import CPU, WIDTH, batch_of, changed, make_pairs, same, write_tar

from ovseg.methods import supervised
from ovseg.methods.supervised import IGNORED, Labels
from ovseg.training import loop
from ovseg.training.decoder import Decoder


def test_the_loss_is_cross_entropy_over_labelled_pixels_then_images():
    batch, stages, decoder = batch_of(images=3, side=1)  # 3, 6, 2, 2
    classes = torch.nn.functional.normalize(torch.from_numpy(np.random.default_rng(0).normal(size=(2, 6))), dim=1)
    labels = torch.tensor([[0, 1, IGNORED, 1], [IGNORED] * 3 + [1], [IGNORED] * 4])
    by_image = []
    for image, of_image in zip(stages[-1].flatten(2).transpose(1, 2), labels, strict=True):
        losses = []
        for v, label in zip(image.detach(), of_image, strict=True):
            if label != IGNORED:
                cosines = [float(v @ c / v.norm()) / 0.07 for c in classes]
                losses.append(-cosines[label] + math.log(sum(map(math.exp, cosines))))
        by_image.append(sum(losses) / max(1, len(losses)))
    batch = batch._replace(labels=labels.view(3, 2, 2), classes=classes)
    loss = supervised.Objective(supervised.Settings(labels=None, tau=0.07), 6)(batch, stages, decoder)["label"]
    assert loss.item() == pytest.approx(sum(by_image) / 3, rel=1e-9)


@pytest.fixture
def read(tmp_path):
    """A function that reads the labels (2, 2) of keys from a shard s.tar of label maps, {key: (H, W) array}."""
    def read(keys, maps, background=False, extension="seg.png"):
        path = write_tar(tmp_path / "s.tar", {key: {"seg.png": Image.fromarray(labels)} for key, labels in maps.items()})
        return supervised.read_labels(extension, background, torch.eye(3, 4), [path], keys, 2)

    return read


def test_label_maps_are_cropped_as_images_and_read_at_the_centre_of_each_cell(read):
    wide = np.full((4, 8), 7, np.uint8)  # 7: outside of the central square
    wide[:, 2:6] = np.kron([[0, 1], [2, 255]], np.ones((2, 2))).astype(np.uint8)
    samples = {"a": wide, "unused": wide, "b": np.full((2, 2), 1, np.uint8)}
    maps, embeddings = read(["s/b", "s/a"], samples)
    assert maps.tolist() == [[[1, 1], [1, 1]], [[0, 1], [2, IGNORED]]] and torch.equal(embeddings, torch.eye(3, 4))
    maps, _ = read(["s/b", "s/a"], samples, background=True)
    assert maps.tolist() == [[[0, 0], [0, 0]], [[IGNORED, 0], [1, IGNORED]]]


def test_missing_label_maps_and_unknown_labels_are_named(read):
    samples = {"a": np.full((2, 2), 3, np.uint8)}
    assert (read(["s/a"], samples, background=True).maps == 2).all()
    for keys, maps, background, extension, message in [
        (["s/a"], samples, False, "seg.png", "s/a: its label map holds 3: must be at most 2"),
        (["s/gone", "s/a"], samples, True, "seg.png", "s/gone: the shards have changed since `prepare` read them"),
        (["s/a"], {"a": np.zeros((2, 2, 3), np.uint8)}, False, "seg.png", "s/a: seg.png: a label map of mode RGB"),
        (["s/a"], samples, False, "other.png", "s/a has no other.png"),
    ]:
        with pytest.raises(ValueError, match=message):
            read(keys, maps, background, extension)


def test_it_learns_label_maps_whatever_the_texts_are(tmp_path):
    pairs = make_pairs()
    features = torch.from_numpy(pairs.images.array).float()
    classes = torch.nn.functional.normalize(torch.from_numpy(np.random.default_rng(0).normal(size=(3, WIDTH)).astype(np.float32)), dim=1)
    maps = features[:, :3].argmax(1).numpy().astype(np.uint8).repeat(2, 1).repeat(2, 2)  # the largest of three features: a rule to learn
    p = changed(method="supervised", epochs=40.0, checkpoint_steps=1000)

    def accuracy(decoder):
        with torch.no_grad():
            predicted = torch.einsum("ndhw,cd->nchw", decoder(features), classes).argmax(1)
        return (predicted.numpy() == maps).mean()

    data = [pairs, pairs._replace(texts=np.full_like(pairs.texts, np.nan))]
    learner, again = (loop.train(p, 0, d, tmp_path / f"{i}.pt", CPU, Labels(maps, classes))[0] for i, d in enumerate(data))
    assert same(learner.state_dict(), again.state_dict())
    assert accuracy(learner.decoder) > 0.6 > 0.45 > accuracy(Decoder(WIDTH).eval())
    every = (Labels(maps, classes), Labels(maps + 1, classes), Labels(maps, -classes), None)
    assert len({loop.fingerprint(p, 0, pairs, labels)["data"] for labels in every}) == 4
