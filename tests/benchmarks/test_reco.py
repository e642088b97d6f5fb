"""ReCo, by loops over the formula of the authors' code (NoelShin/reco, networks/reco.py), and as a run of the study."""

import numpy as np
import torch
from handmade import study
from small import cosine

from ovseg import params
from ovseg.benchmarks import datasets, encoding, evaluation
from ovseg.segmentation import reco
from ovseg.study import runs


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_loops(dense, name):
    """The reference of a category: patches against those of every picture, weighted by their attention to the text."""
    pictures, seeds = [picture.flatten(1).T for picture in dense], []
    for own in pictures:
        best = [[max(cosine(p, q) / (1 + (-10 * cosine(q, name)).exp()) for q in picture) for picture in pictures] for p in own]
        seeds.append(own[int(np.argmax(np.mean(best, 1)))])
    mean = sum(seeds) / len(seeds)
    return mean / mean.norm()


def write(folder, dense, images):
    folder.mkdir(parents=True)
    for name, array in (("pairs", dense), ("images", images)):
        np.save(folder / f"{name}.npy", array.numpy().astype(np.float16))


def test_a_reference_is_the_mean_of_the_seeds_of_all_pictures():
    for seed in range(5):
        dense, name = normal(4, 6, 2, 3, seed=seed), normal(6, seed=9)
        torch.testing.assert_close(reco.cosegment(dense, name / name.norm()), by_loops(dense, name))


def test_the_object_that_the_nearest_pictures_share_is_found(tmp_path):
    dense, axes = normal(6, 8, 3, 3), torch.eye(8)
    shared = (axes[0] + axes[2]) / 2**0.5  # similar to the first name, as are some of the others
    for n, (y, x) in enumerate([(0, 1), (2, 2), (1, 0)]):
        dense[n, :, y, x] = 5 * (n + 1) * shared  # at any place, of any length
    images = torch.tensor([[3.0, 0, 0], [2, 0.1, 0], [1, 0, 0], [9, 9, 9], [-1, 0, 0], [0, 1, 0]])  # the fourth is long, but less similar
    write(tmp_path / "train", dense, torch.cat([images, torch.zeros(6, 5)], 1))
    names = axes[:2]
    three = reco.references(names, 3, tmp_path / "train")
    torch.testing.assert_close(three[0], shared, rtol=1e-3, atol=1e-3)
    (other,) = reco.references(names[1:], 1, tmp_path / "train")  # of the last picture alone
    torch.testing.assert_close(other, by_loops(dense[5:].half().float(), names[1]), rtol=1e-4, atol=1e-4)
    of_synonyms = reco.references(names[:, None].expand(-1, 2, -1), 3, tmp_path / "train")
    assert torch.equal(of_synonyms[:, 1], three)
    every, more = (reco.references(names, count, tmp_path / "train") for count in (6, 9))
    assert torch.equal(every, more) and not torch.equal(every, three)


def test_the_run_multiplies_its_scores_with_those_of_clip(mine, clip, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    p = study(mine)
    encoding.encode_benchmarks(clip, datasets.open_benchmarks(mine), p.segment, "data/features/benchmarks", ["maskclip"])
    write(tmp_path / "data/features/train", normal(20, clip.width, 4, 4), normal(20, clip.width))
    cpu = torch.device("cpu")
    suite, segmenters = runs.open_segmenters(params.Run("reco", "untrained", {}, p), cpu)
    _, plain = runs.open_segmenters(params.Run("maskclip", "untrained", {}, p), cpu)
    names = reco.references(suite[0].classes, p.reco.pictures, "data/features/train")
    pairs = [(suite, segmenters), (suite, plain), ([evaluation.Encoded(suite[0].benchmark, names, suite[0].windows)], plain)]
    scored = zip(*(evaluation.score_pictures(suite, [of[None].with_unit("meta-point")]) for suite, of in pairs), strict=True)
    for (_, _, ((own,),)), (_, _, ((text,),)), (_, _, ((image,),)) in scored:
        torch.testing.assert_close(own.mosaic, 1 / (1 + (-10 * text.mosaic).exp()) / (1 + (-image.mosaic).exp()))
