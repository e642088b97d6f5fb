"""InfoNCE over a batch of image-text pairs, and which pairs are negatives of each other: what all methods on texts share."""

import torch
import torch.nn.functional as F


def info_nce(logits, negative, direction="both"):
    """InfoNCE of a (B, B) matrix of logits, rows images, columns texts, positives on the diagonal.

    negative: bool (B, B), which entries are negatives; the diagonal counts in any case. direction:
    "image-to-text" contrasts each image's text with the other texts, "text-to-image" the reverse, "both" averages.
    """
    positive = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(~(negative | positive), -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    to_text, to_image = F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)
    return {"image-to-text": to_text, "text-to-image": to_image, "both": (to_text + to_image) / 2}[direction]


def negatives(subjects, mask_equal_texts):
    """Which image-text pairs of a batch are negatives: subjects (B,) -> bool (B, B), i != j, equal subjects masked if asked.

    subjects are equal where images drew texts of the same subject, see TextBank.subjects.
    """
    negative = ~torch.eye(len(subjects), dtype=torch.bool, device=subjects.device)
    return negative & (subjects[:, None] != subjects[None, :]) if mask_equal_texts else negative
