"""Curated texts: nouns that a caption leaves out come from the captions of similar pictures (CoCu, Concept Curation: Xing et al., "Rewrite
Caption Semantics: Bridging Semantic Gaps for Language-Supervised Semantic Segmentation", NeurIPS 2023).

- Vision-driven expansion: the archive of a picture holds the nouns of the captions of its nearest pictures, by cosine of CLIP's embeddings.
- Text-to-vision-guided ranking: a noun's score is its cosine to the picture less the mean of its cosines to all pictures, so that nouns
  that are close to any picture do not come first.
- Cluster-guided sampling: a prompt is of a noun in a random cluster of the picture's nouns, so that frequent concepts do not crowd out
  others.

Our source is the paper's abstract, which gives no more than these three steps. Choices of ours: the caption's own nouns stay, whatever they
score; the best of the archive fill up to `concepts` nouns; clusters are of all nouns (k-means); captions are drawn as often as before."""

import dataclasses
import math
from array import array

import numpy as np
import torch
import torch.nn.functional as F
from scipy.cluster.vq import kmeans2

from ..clip.encode import as_tensor

ENTRIES = 1 << 26  # of a block of similarities: 256 MiB


def curate(bank, texts, images, settings, device="cpu"):
    """The TextBank of N pairs with curated nouns. texts (T, d): embeddings of bank.texts. images (N, d): CLIP's embeddings of the
    pictures. settings: schema.Cocu. A noun is listed several times for a pair where its draw is more probable than others'."""
    if not bank.nouns:
        return bank
    prompts = F.normalize(as_tensor(texts[len(bank.captions) :]), dim=1)
    nouns = F.normalize(prompts.unflatten(0, (len(bank.nouns), -1)).mean(1), dim=1)  # V, d
    _, clusters = kmeans2(nouns.numpy(), min(settings.clusters, len(nouns)), minit="++", rng=0)
    noun_index, offset, images = array("i"), array("q", [0]), as_tensor(images, device)
    for words in concepts(bank, nouns.to(device), F.normalize(images, dim=1, out=images), settings):
        noun_index.extend(slots(words, clusters))
        offset.append(len(noun_index))
    return dataclasses.replace(bank, noun_index=np.array(noun_index), offset=np.array(offset))


def concepts(bank, nouns, images, settings):
    """Yield each picture's nouns, indices: those of its caption, then the best of its archive. nouns (V, d), images (N, d): unit length."""
    mean = images.mean(0)
    for rows in torch.arange(len(images)).split(max(1, ENTRIES // max(len(images), len(nouns)))):
        near = neighbours(images, rows, settings.neighbours).cpu()  # b, M
        captions, found = map(torch.from_numpy, bank.named[near.flatten().numpy()].nonzero())
        scores = (images[rows] - mean) @ nouns.T  # b, V; the cosine to the mean picture is the mean of the cosines
        archive = torch.zeros(scores.shape, dtype=torch.bool)
        archive[captions // near.shape[1], found] = True
        best = scores.masked_fill(~archive.to(scores.device), -math.inf).topk(min(settings.concepts, len(nouns)))
        for row, words, values in zip(rows.tolist(), best.indices.tolist(), best.values.tolist(), strict=True):
            own = bank.noun_index[bank.offset[row] : bank.offset[row + 1]].tolist()
            others = [word for word, value in zip(words, values, strict=True) if value > -math.inf and word not in own]
            yield own + others[: max(0, settings.concepts - len(own))]


def neighbours(images, rows, count):
    """Indices of the pictures most similar to those of rows (b,), without themselves, (b, count). images (N, d): unit length."""
    similarity = images[rows] @ images.T  # b, N
    similarity[torch.arange(len(rows)), rows] = -math.inf
    return similarity.topk(min(count, len(images) - 1)).indices


def slots(words, clusters):
    """Repeat words so that a uniform draw is that of a cluster and then of a word in it. clusters: the cluster of each word."""
    by_cluster = {}
    for word in words:
        by_cluster.setdefault(clusters[word], []).append(word)
    size = math.lcm(*map(len, by_cluster.values()))
    return [word for group in by_cluster.values() for word in group * (size // len(group))]


def judge(own, curated, true):
    """{"captions", "added", "curated": [nouns per picture, precision, recall in percent]}. own, curated, true: (N, V) bool, the nouns of
    captions, curated nouns, and what the pictures show. The recall of added nouns is of what captions leave out."""
    rows = {"captions": (own, true), "added": (curated & ~own, true & ~own), "curated": (curated, true)}
    return {name: [chosen.sum(1).mean(), 100 * of[chosen].mean(), 100 * chosen[of].mean()] for name, (chosen, of) in rows.items()}
