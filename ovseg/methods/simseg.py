"""SimSeg: locality-driven alignment (Yi et al. 2023), on the decoder's pixel embeddings: few pixels of an image meet a text.

    channel    z[i, c] = mean of the k largest V[i, p, c] over p;  s[i, j] = cos(z[i], t[j])       the authors' code
    text       s[i, j] = mean of the k largest cos(V[i, p], t[j]) over p                           the pixels that a text selects
    loss       = InfoNCE of s / tau, both directions;  k = top L, 5 of 196 patches in the paper

In the code (github.com/muyangyi/SimSeg, components/pooling.py), each channel selects its own patches, tau is learned (from 0.02), and both
towers are trained. It pools the words of a text like patches, with k = 1: left out, as the frozen text tower gives one embedding per text.
"""

from typing import Literal

import torch.nn.functional as F

from ..schema import Positive, Section, Share
from ..training.objectives import BaseObjective, info_nce

TITLE = "SimSeg"


class Settings(Section):
    select: Literal["channel", "text"]
    top: Share
    tau: Positive


class Objective(BaseObjective):
    """No parameters."""

    def forward(self, batch, stages, decoder):
        s, pixels, texts = self.settings, stages[-1].flatten(2), F.normalize(batch.texts, dim=-1)  # b, d, L
        count = max(1, round(s.top * pixels.shape[2]))
        if s.select == "channel":
            cosines = F.normalize(pixels.topk(count).values.mean(2), dim=-1) @ texts.T  # b, B
        else:
            cosines = (texts @ F.normalize(pixels, dim=1)).topk(count).values.mean(2)
        return {"local": info_nce(batch.world.gather(cosines / s.tau), batch.negative)}
