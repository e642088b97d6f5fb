"""MixReorg: cross-modal mixed patch reorganization (Cai et al. 2023), on the decoder.

In each set of m images, patches are permuted across images at each position. Their known sources give patch-text pairs:

    mix[i, p]   = F[source[i, p], p]            F: dense features of the images; source[:, p]: a permutation of the m images
    mixed       = -log of the softmax over the m texts of cos(D(mix)[i, p], t_j) / tau, at j = source[i, p], averaged over pixels
    restored    = InfoNCE of cos(r_i, t_j) / tau; r_i: the mean of the pixels of D(mix) that come from image i (mixing restoration)
    original    = InfoNCE of cos(v_i, t_j) / tau; v_i: the mean of the pixels of D(F)

`block: n` mixes before block n of CLIP, counted from 0 (contextual mixing): the class token stays with image i, and the output of the
remaining blocks replaces mix[i]. CLIP then runs twice per step, and features cannot be cached. `progressive`: after each decoder block,
the mixed maps are averaged with the original images' maps of that block, mixed in the same way. Our source, a summary of the paper, does
not give m, how original features enhance mixed ones, or how patches are pooled. The paper trains a whole ViT with GroupViT's two grouping
blocks, and contrasts segment tokens; here the ViT is frozen, and there are no groups.
"""

from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from ..schema import Count, Index, Positive, Section
from ..training.objectives import BaseObjective, info_nce

TITLE = "MixReorg"


class Settings(Section):
    images: Annotated[int, Field(ge=2)]
    patch: Count
    block: Index | None
    progressive: bool
    restoration: bool
    tau: Positive
    weight: Positive


class Objective(BaseObjective):
    """No parameters. The number of images per process must be a multiple of settings.images."""

    def forward(self, batch, stages, decoder):
        s, world = self.settings, batch.world
        if len(batch.dense) % s.images:
            raise ValueError(f"train.batch: {len(batch.dense)} images in a process, must be a multiple of {s.images} (mixreorg.images)")
        share = world.share(len(batch.texts))
        source = deal(batch.random, len(batch.texts), s.images, *batch.dense.shape[2:], s.patch)[share] - share.start
        source = torch.from_numpy(source).to(batch.dense.device)  # b, h, w: index of the patch's source among this process' images
        fine = source.repeat_interleave(2, 1).repeat_interleave(2, 2)  # b, 2h, 2w: the decoder doubles the grid
        mixed = mix(batch.dense, source) if s.block is None else batch.encode(mixing=(s.block, source))
        with batch.autocast():
            maps = decoder.upsample(mixed)
            for block, stage in zip(decoder.blocks, stages[1:], strict=True):
                maps = (block(maps) + mix(stage, fine)) / 2 if s.progressive else block(maps)
        maps = maps.to(mixed.dtype)
        texts = F.normalize(batch.texts, dim=-1)
        of_mixed = mixed_loss(F.normalize(maps, dim=1), fine, texts[share], batch.negative[share, share], s.images, s.tau)  # b
        losses = {"mixed": world.gather(of_mixed).mean()}
        restored = maps.scatter(0, fine[:, None].expand_as(maps), maps)  # the inverse of `mix`
        for name, of_images in [("original", stages[-1]), ("restored", restored)][: 1 + s.restoration]:
            logits = F.normalize(of_images.mean((2, 3)), dim=-1) @ texts.T / s.tau  # b, B
            losses[name] = info_nce(world.gather(logits), batch.negative)
        return {name: s.weight * loss for name, loss in losses.items()}


def deal(random, batch, images, height, width, patch):
    """Draw the source image of each patch: (batch, h, w) int64. Each set of `images` consecutive images is permuted at each position,
    in square cells of patch x patch. random: numpy Generator."""
    rows, columns = -(-height // patch), -(-width // patch)
    order = np.broadcast_to(np.arange(images)[:, None, None], (batch // images, images, rows, columns))
    dealt = random.permuted(order, axis=1).repeat(patch, 2).repeat(patch, 3)[:, :, :height, :width]
    return (dealt + images * np.arange(batch // images)[:, None, None, None]).reshape(batch, height, width)


def mix(maps, source):
    """Mix maps (b, d, h, w) by source (b, h, w) -> (b, d, h, w): each position takes the vector of the image given by `source`."""
    return maps.gather(0, source[:, None].expand_as(maps))


def mixed_loss(pixels, source, texts, negative, images, tau):
    """Cross-entropy of each pixel's source image, averaged over the pixels of each mixed image: (b,). pixels (b, d, H, W), texts (b, d):
    unit length. source: (b, H, W). negative: (b, b) bool; the softmax leaves out other texts of the correct one's subject."""
    own = source % images  # within its set
    logits = torch.einsum("smdhw,scd->smchw", pixels.unflatten(0, (-1, images)), texts.unflatten(0, (-1, images))).flatten(0, 1) / tau
    wrong = torch.stack([rows[:, i * images :][:, :images] for i, rows in enumerate(negative.split(images))])  # sets, m right, m others
    allowed = wrong | torch.eye(images, dtype=torch.bool, device=texts.device)
    allowed = allowed.repeat_interleave(images, 0)[torch.arange(len(own), device=own.device)[:, None, None], own]  # b, H, W, m
    logits = logits.masked_fill(~allowed.movedim(-1, 1), -torch.inf)
    return F.cross_entropy(logits, own, reduction="none").mean((1, 2))
