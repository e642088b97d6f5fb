"""Outlier patches: vectors of large norm, alike in all pictures, as image encoders of full size have them (Darcet et al. 2023).

A text's most similar patch (rank 0, MGCA's k = 0) can be one. `overwrite` puts such patches into features that have none (train.outliers);
`found` measures how often the patch of rank 0 is one, for any CLIP."""

import numpy as np
import torch

COMMON, TIMES = 3, 3  # number of common vectors; their length, in mean lengths of a feature
UNUSUAL = 3.5  # robust z-score from which a norm is an outlier (Iglewicz and Hoaglin 1993)


def overwrite(features, share, seed):
    """A copy of features (N, d, h, w) in memory, in which each patch is with probability `share` one of COMMON vectors of random
    directions, TIMES as long as a mean feature. The same for the same seed."""
    random, copy = np.random.default_rng(seed), np.array(features)
    patches = np.moveaxis(copy, 1, -1)  # N, h, w, d: a view
    length = np.mean([np.linalg.norm(picture.astype(np.float32), axis=-1).mean() for picture in patches])
    vectors = random.standard_normal((COMMON, patches.shape[-1]))
    vectors *= TIMES * length / np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = random.random(patches.shape[:3]) < share
    patches[chosen] = vectors[random.integers(COMMON, size=chosen.sum())]
    return copy


def found(features, texts):
    """Outliers by norm among the patches of n pictures: (share of all patches, share of the patches most similar to the picture's text,
    which are the positives at k = 0). An outlier's norm has a robust z-score of at least UNUSUAL: 0.6745 (norm - median) / MAD, over
    all n pictures. features (n, d, h, w), texts (n, d): not normalised."""
    patches = features.flatten(2)  # n, d, L
    norms = patches.norm(dim=1)  # n, L
    deviation = norms - norms.median()
    outlier = (0.6745 * deviation >= UNUSUAL * deviation.abs().median()) & (deviation > 0)
    first = torch.einsum("ndl,nd->nl", patches, texts).argmax(1, keepdim=True)
    return outlier.float().mean().item(), outlier.gather(1, first).float().mean().item()
