"""ReCo: retrieve and co-segment (Shin et al. 2022), which reads CLIP with the help of training pictures, without training.

For each class name t, the n training pictures are retrieved whose embedding is most similar to it. The seed of a picture is the patch that
has similar patches, which are also similar to the name, in all of them; the mean of the seeds is the name's reference embedding:

    a[j, q] = sigmoid(10 cos(x[j, q], t))                                   x: dense features of the pictures
    s[i, p] = mean over j of max over q of a[j, q] cos(x[i, p], x[j, q])    j: all n pictures, with i itself, as in the authors' code
    r       = mean over i of x[i, argmax over p of s[i, p]], unit length    n = 50 in the paper
    score   = sigmoid(10 cos(v, t)) sigmoid(cos(v, r))                      v: a pixel of the picture to segment

docs/methods.md lists the differences.
"""

import functools
from pathlib import Path

import torch
import torch.nn.functional as F

from ..clip.encode import as_tensor, open_cached

ATTENTION = 10  # scale of the cosines of patches and name


def reader(pictures, folder="data/features/train"):
    """`references` as a function of a tensor of class names alone, which it computes once for each."""
    return functools.lru_cache(functools.partial(references, pictures=pictures, folder=folder))


def references(classes, pictures, folder):
    """The reference embeddings of class names, (..., d) -> (..., d), unit length. pictures: n, how many are retrieved for each; all if
    there are fewer. folder: the features of the training pictures."""
    images, dense = open_cached(Path(folder) / "images.npy"), open_cached(Path(folder) / "pairs.npy")
    images, names = F.normalize(as_tensor(images, classes.device), dim=-1), classes.flatten(0, -2)
    rows = (names @ images.T).topk(min(pictures, len(images))).indices.sort().values  # C, n; sorted, as the array is on disk
    pairs = zip(rows.cpu().numpy(), names, strict=True)
    return torch.stack([cosegment(as_tensor(dense[of], classes.device), name) for of, name in pairs]).view_as(classes)


def product(cosines, of_references):
    """The scores of pixels, 0..1, from their cosines with names and with the names' references."""
    return torch.sigmoid(ATTENTION * cosines) * torch.sigmoid(of_references)


def cosegment(dense, name):
    """The reference embedding r (d,) of a name (d,), unit length, from the dense features (n, d, h, w) of n pictures."""
    patches = dense.flatten(2)  # n, d, L
    directions = F.normalize(patches, dim=1)
    attention = torch.sigmoid(ATTENTION * torch.einsum("ndl,d->nl", directions, name))
    seeds = []
    for own, of_picture in zip(directions, patches, strict=True):
        similar = torch.einsum("dp,ndl->npl", own, directions) * attention[:, None]  # n, L, L
        seeds.append(of_picture[:, similar.amax(2).mean(0).argmax()])
    return F.normalize(torch.stack(seeds).mean(0), dim=0)
