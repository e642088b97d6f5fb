"""PACL's loss by loops over its equations."""

import torch
from small import P, batch_of, cosine, info_nce_by_loops

from ovseg.methods import pacl


def test_the_loss_is_info_nce_of_the_pooled_compatibility():
    settings = P.pacl.model_copy(update={"patch_tau": 0.3, "tau": 0.2})
    batch, stages, decoder = batch_of(subjects=[0, 1, 2, 0, 3, 4, 5, 6])
    pixels = stages[-1].flatten(2).transpose(1, 2)
    logits = torch.zeros(8, 8, dtype=torch.float64)
    for i in range(8):
        for j in range(8):
            scores = torch.stack([cosine(v, batch.texts[j]) for v in pixels[i]])
            weights = (scores / 0.3).exp() / (scores / 0.3).exp().sum()
            pooled = sum(w * v / v.norm() for w, v in zip(weights, pixels[i], strict=True))
            logits[i, j] = pooled @ batch.texts[j] / batch.texts[j].norm() / 0.2
    found = pacl.Objective(settings, 6)(batch, stages, decoder)
    torch.testing.assert_close(found["compatibility"], info_nce_by_loops(logits, batch.negative))
