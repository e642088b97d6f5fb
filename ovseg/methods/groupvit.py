"""Learned groups in the manner of GroupViT (Xu et al. 2022, Eq. 2-5), over the decoder's pixel embeddings.

Group tokens attend to an image, each pixel is assigned to one of them, and the groups represent the image:

    x          = LN(V),  g = LN(tokens + attention(tokens, x))            (L, d) and (G, d), per image
    A[p, k]    = one-hot of argmax over k of softmax(((Wq g_k . Wk x_p) / sqrt(d) + Gumbel noise) / gumbel_tau), gradient of the softmax
    z_k        = sum_p A[p, k] V_p / (1 + sum_p A[p, k])
    loss       = InfoNCE of cos(mean over k of z_k, t_j) / tau, both directions

GroupViT trains its encoder; here it is frozen, and groups are means of pixels in the joint space, without value projection and residual
token, in one stage. Left out besides: a learned temperature, the contrast with several prompts of a caption, MLPs over tokens and over
channels, six heads. At inference a pixel gets the mean of its group, without noise (segment.unit: learned-group); GroupViT enlarges the
soft assignment first, keeps the five classes most similar to the picture, and lowers its threshold to the largest score.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from safetensors.torch import load_file
from torch import nn

from ..schema import Positive, Section
from ..training.objectives import WEIGHTS, BaseObjective, info_nce

TITLE = "GroupViT"


class Settings(Section):
    groups: Annotated[int, Field(ge=2)]
    gumbel_tau: Positive
    tau: Positive


class Objective(BaseObjective):
    """Parameters: tokens (G, d), cross-attention, Wq and Wk."""

    def __init__(self, settings, width):
        super().__init__(settings, width)
        self.tokens = nn.Parameter(0.02 * torch.randn(settings.groups, width))
        self.norm, self.norm_tokens = nn.LayerNorm(width), nn.LayerNorm(width, bias=False)
        self.attention = nn.MultiheadAttention(width, 1, bias=False, batch_first=True)  # GroupViT's has biases
        self.query, self.key = nn.Linear(width, width, bias=False), nn.Linear(width, width)  # the same for all groups: no bias

    def scores(self, pixels):
        """Affinity of each pixel to each group: pixels (n, L, d) -> (n, L, G)."""
        x, tokens = self.norm(pixels), self.tokens.expand(len(pixels), -1, -1)
        tokens = self.norm_tokens(tokens + self.attention(tokens, x, x, need_weights=False)[0])  # n, G, d
        return self.key(x) @ self.query(tokens).transpose(1, 2) / x.shape[-1] ** 0.5

    @torch.no_grad()
    def assign(self, pixels):
        """The group of each pixel: (n, L, d) -> (n, L) indices."""
        return self.scores(pixels).argmax(-1)

    def forward(self, batch, stages, decoder):
        pixels = stages[-1].flatten(2).transpose(1, 2)  # b, L, d
        scores = self.scores(pixels)  # b, L, G
        noise = batch.random.gumbel(size=(len(batch.texts), *scores.shape[1:])).astype(np.float32)[batch.world.share(len(batch.texts))]
        soft = ((scores + torch.from_numpy(noise).to(scores.device)) / self.settings.gumbel_tau).softmax(-1)
        hard = F.one_hot(soft.argmax(-1), soft.shape[-1]).to(soft.dtype)
        member = hard - soft.detach() + soft  # straight-through: the value of hard, the gradient of soft
        groups = member.transpose(1, 2) @ pixels / (1 + member.sum(1))[..., None]  # b, G, d
        images, texts = F.normalize(groups.mean(1), dim=-1), F.normalize(batch.texts, dim=-1)
        return {"group": info_nce(batch.world.gather(images @ texts.T / self.settings.tau), batch.negative)}


def load_grouping(folder):
    """Load the trained Objective of a training folder, on the CPU and in eval mode; None if another method was trained."""
    file = Path(folder) / WEIGHTS
    state = {name.removeprefix("groupvit."): value for name, value in load_file(file).items()} if file.is_file() else {}
    if "tokens" not in state:
        return None
    groups, width = state["tokens"].shape
    objective = Objective(Settings(groups=groups, gumbel_tau=1.0, tau=1.0), width)  # temperatures matter in training only
    objective.load_state_dict({name: state[name] for name in objective.state_dict()})
    return objective.eval()
