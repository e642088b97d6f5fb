"""Multi-grained cross-modal alignment: pseudo-correspondences and the three contrastive losses (MGCA §3.2).

V (B, L, d) are the decoder's pixel embeddings of B images, t (B, d) those of the texts drawn for them, neither normalised, and
S[i, j, p] = V[i, p] . t[j] is their similarity (Eq. 2). Each level has (B, B) logits, with positives on the diagonal, for an InfoNCE loss:
    object  (Eq. 3-5)  cos(o_i, t_j) / tau; o_i is the embedding of the object that t_i describes in image i
    region  (Eq. 6)    cos(r_ij, t_j) / tau; r_ij is the region of image i most similar to the unpaired t_j; the diagonal uses o_i
    pixel   (Eq. 7)    max_p S[i, j, p] / sqrt(d); the diagonal uses the pixel of rank k*L, the semi-hard positive
"""

import math
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from ..clip.encode import as_tensor
from ..schema import Positive, Section, Share, joined
from ..training.distributed import World
from ..training.objectives import BaseObjective, info_nce, negatives_of
from . import mining

TITLE = "MGCA"


class Settings(Section):
    granularity: joined(("object", "region", "pixel"))
    alpha: Annotated[Positive, Field(le=1)]
    beta: Annotated[Positive, Field(le=1)]
    k: Share  # at most alpha: a positive pixel lies in the object
    tau: Positive
    direction: Literal["image-to-text", "text-to-image", "both"]


class Objective(BaseObjective):
    """The three losses. No parameters."""

    def forward(self, batch, stages, decoder):
        return losses(stages[-1].flatten(2).transpose(1, 2), batch.texts, batch.negative, self.settings, batch.world)


def top_count(share, length):
    """Number of pixels in a share of `length` (e.g. alpha*L), rounded half up and clamped to 1..length."""
    return min(length, max(1, math.floor(share * length + 0.5)))


def losses(pixels, texts, negative, settings, world=World()):  # noqa: B008 (frozen)
    """Losses of the levels in settings.granularity: {"object" | "region" | "pixel": scalar}. Eq. 5-7. Their sum is the objective (Eq. 8).
    pixels (b, L, d): of this process' share of the images. texts (B, d): of the whole batch. negative (B, B): objectives.negatives."""
    length, width = pixels.shape[1:]
    levels, texts = settings.granularity.split("+"), texts.detach()
    share = world.share(len(texts))
    own = torch.arange(len(texts), device=texts.device)[share]  # b
    region_top = top_count(settings.beta, length) if "region" in levels else int("pixel" in levels)
    counts = top_count(settings.alpha, length), top_count(settings.k, length), region_top
    objects, positive, peak, region = mining.mine(pixels, texts, own, *counts)
    objects, unit_texts = F.normalize(objects, dim=-1), F.normalize(texts, dim=-1)
    diagonal = torch.eye(len(texts), dtype=torch.bool, device=texts.device)[share]
    logits = {  # b, B
        "object": objects @ unit_texts.T / settings.tau,
        "region": torch.where(diagonal, (objects * unit_texts[share]).sum(-1)[:, None], region) / settings.tau,
        "pixel": torch.where(diagonal, positive[:, None], peak) / math.sqrt(width),
    }
    return {level: info_nce(world.gather(logits[level]), negative, settings.direction) for level in levels}


@torch.no_grad()
def correspondences(pixels, texts, negative, settings):
    """What the losses select in a batch, for visualisation. Arguments: see `losses`, for a single process. Returns a dict of tensors:
    similarity (B, L), S[i, i]; object (B, L) bool, its top alpha*L pixels; positive (B,), the index of the semi-hard pixel;
    negative (B,), the text j != i whose region in image i is most similar to it; region (B, L) bool, that region."""

    def top(scores, share):
        index = scores.topk(top_count(share, scores.shape[1])).indices
        return torch.zeros_like(scores, dtype=torch.bool).scatter(1, index, True)

    own = torch.arange(len(texts), device=texts.device)
    paired = mining.paired_similarity(pixels, texts)  # B, L
    *_, hardness = mining.mine(pixels, texts, own, 1, 1, top_count(settings.beta, pixels.shape[1]))  # B, B
    hardest = hardness.masked_fill(~negative, -torch.inf).argmax(1)
    return {
        "similarity": paired,
        "object": top(paired, settings.alpha),
        "positive": paired.topk(top_count(settings.k, pixels.shape[1])).indices[:, -1],
        "negative": hardest,
        "region": top(mining.paired_similarity(pixels, texts[hardest]), settings.beta),
    }


@torch.no_grad()
def explain(decoder, pairs, p, count=16):
    """What the losses select in the first `count` pairs, each with a prompt drawn at random: (texts, `correspondences` with maps
    (count, h, w)). decoder: on the CPU. pairs: batches.Pairs. p: Params."""
    bank = pairs.bank
    rows = np.arange(min(count, len(bank)))
    drawn = bank.draw(rows, np.random.default_rng(0), caption_probability=0.0)
    pixels = decoder(pairs.images.first(len(drawn), "cpu").cpu())  # B, d, h, w
    negative = negatives_of(bank, rows, drawn, p.train)
    selected = correspondences(pixels.flatten(2).transpose(1, 2), as_tensor(pairs.texts[drawn]), negative, p.mgca)
    maps = {name: value.unflatten(1, pixels.shape[2:]) if value.ndim == 2 else value for name, value in selected.items()}
    return [bank.texts[i] for i in drawn], maps
