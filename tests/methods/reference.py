"""Eq. 2-8 of MGCA as they are written, with all similarities and regions in full: what the losses are compared with."""

import math

import torch
import torch.nn.functional as F


def count(share, length):
    """Pixels that a share of them is."""
    return min(length, max(1, int(share * length + 0.5)))


def pooled(pixels, scores, share):
    """Eq. 3-4: softmax over all pixels, the mask of the top share, the weighted sum. pixels (B, L, d), scores (B, B, L) -> (B, B, d)."""
    mask = scores.argsort(-1, descending=True).argsort(-1) < count(share, scores.shape[-1])
    return torch.einsum("ijp,ipd->ijd", scores.softmax(-1) * mask, pixels)


def losses(pixels, texts, negative, settings):
    """The loss of each level. pixels (B, L, d), texts (B, d), negative (B, B) bool, settings: params.Mgca."""
    length, width = pixels.shape[1:]
    own = torch.eye(len(texts), dtype=torch.bool)
    scores = torch.einsum("ipd,jd->ijp", pixels, texts)  # Eq. 2
    objects, regions = pooled(pixels, scores, settings.alpha)[own][:, None], pooled(pixels, scores, settings.beta)  # B, 1, d; B, B, d
    like_object = F.cosine_similarity(objects, texts, dim=-1) / settings.tau  # B, B
    like_region = F.cosine_similarity(regions, texts, dim=-1) / settings.tau
    ranked = scores.sort(-1, descending=True).values / math.sqrt(width)
    logits = {
        "object": like_object,  # Eq. 5
        "region": torch.where(own, like_object, like_region),  # Eq. 6
        "pixel": torch.where(own, ranked[..., count(settings.k, length) - 1], ranked[..., 0]),  # Eq. 7
    }
    counted = own | negative
    found = {}
    for level in settings.levels:
        e = logits[level].exp() * counted
        to_text, to_image = (-(e.diagonal() / e.sum(dim)).log().mean() for dim in (1, 0))
        found[level] = {"image-to-text": to_text, "text-to-image": to_image, "both": (to_text + to_image) / 2}[settings.direction]
    return found
