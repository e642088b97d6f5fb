"""InfoNCE over a batch of image-text pairs and the mask of negatives, shared by all text-supervised methods."""

import torch
import torch.nn.functional as F


def info_nce(logits, negative, direction="both"):
    """InfoNCE of (B, B) logits. Rows are images, columns are texts, positives lie on the diagonal.

    negative: (B, B) bool, True for negatives; the diagonal is always included. direction:
    "image-to-text" contrasts each image's text with the other texts, "text-to-image" the reverse, "both" averages the two.
    """
    positive = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(~(negative | positive), -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    to_text, to_image = F.cross_entropy(logits, target), F.cross_entropy(logits.T, target)
    return {"image-to-text": to_text, "text-to-image": to_image, "both": (to_text + to_image) / 2}[direction]


def negatives(subjects, mask_equal_texts):
    """Mask of negative image-text pairs: subjects (B,) -> (B, B) bool, True where i != j.

    With mask_equal_texts, pairs with equal subjects are not negatives; see TextBank.subjects.
    """
    negative = ~torch.eye(len(subjects), dtype=torch.bool, device=subjects.device)
    return negative & (subjects[:, None] != subjects[None, :]) if mask_equal_texts else negative
