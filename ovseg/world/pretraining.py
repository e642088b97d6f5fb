"""Pretraining the compact CLIP of the rendered world, from image-text contrast only: no label map is ever read.

The pairs are rendered as they are needed, each seen once. What comes out is a folder that open_clip opens as
"local-dir:..." and that any program with open_clip can use.
"""

import json
import math
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.utils.data import DataLoader, Dataset
from torchmetrics.classification import MultilabelAveragePrecision
from tqdm import tqdm

from ..data.captions import nouns
from . import scenes

CONTEXT = 32  # tokens of a text: captions of the rendered world are short


class RenderedPairs(Dataset):
    """`count` pairs rendered on demand: (3, S, S) uint8 image, and a caption or a prompt made of one of its nouns."""

    def __init__(self, settings, count):
        self.settings, self.count = settings, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        s = self.settings
        scene = scenes.render(s.seed, scenes.PRETRAIN, index, s.size, s.size, s.max_things, s.omit, s.omit_stuff, s.invent)
        rng = np.random.default_rng([s.seed, scenes.PRETRAIN, index, 1])
        text, words = scene.caption, nouns(scene.caption)
        if words and rng.random() >= s.caption_probability:
            text = s.templates[rng.integers(len(s.templates))].format(words[rng.integers(len(words))])
        return torch.from_numpy(scene.image).permute(2, 0, 1), text


def model_config(settings, dropout=0.0):
    """open_clip's description of the compact model.

    settings: params.Pretrain; dropout: share of the patches that the image tower does not look at in training.
    """
    return {
        "embed_dim": settings.embed_dim,
        "vision_cfg": {
            "image_size": settings.size,
            "patch_size": settings.patch,
            "width": settings.vision_width,
            "layers": settings.vision_layers,
            "head_width": 64,
            "patch_dropout": dropout,
        },
        "text_cfg": {
            "context_length": CONTEXT,
            "vocab_size": 49408,
            "width": settings.text_width,
            "heads": settings.text_width // 64,
            "layers": settings.text_layers,
        },
    }


def contrast(image, text, scale, texts):
    """CLIP's loss: symmetric InfoNCE of (B, d) embeddings. Pairs that drew the same text are no negatives."""
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T  # B, B
    ids = {t: i for i, t in enumerate(texts)}
    ids = torch.tensor([ids[t] for t in texts], device=image.device)
    same = (ids[:, None] == ids[None, :]) & ~torch.eye(len(ids), dtype=torch.bool, device=image.device)
    logits = logits.float().masked_fill(same, -torch.inf)
    target = torch.arange(len(ids), device=image.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def pretrain(settings, device="cpu", watch=None):
    """Train the compact CLIP. Returns (model on the CPU, history), history a list of {"pairs", "loss"}.

    settings: params.Pretrain; watch(model, pairs): called about twenty times on the way.
    """
    torch.manual_seed(settings.seed)
    model = open_clip.model.CLIP(**model_config(settings, settings.patch_dropout)).to(device)
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), fused=True)
    steps = settings.pairs // settings.batch
    pairs = RenderedPairs(settings, steps * settings.batch)
    loader = DataLoader(pairs, settings.batch, num_workers=settings.workers, collate_fn=_collate)
    history = []
    for step, (images, texts) in enumerate(tqdm(loader, "pretrain", mininterval=5)):
        warm, done = min(1, (step + 1) / (0.05 * steps)), step / steps
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * warm * (0.5 + 0.5 * math.cos(math.pi * done))
        if done >= 0.8 and settings.patch_dropout:
            model.visual.patch_dropout.prob = 0.0  # the last fifth sees whole pictures, as it will be used
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            image = model.encode_image((images.to(device).float() / 255 - mean) / std)
            text = model.encode_text(tokenizer(texts).to(device))
        loss = contrast(image.float(), text.float(), model.logit_scale.exp(), texts)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        model.logit_scale.data.clamp_(0, math.log(100))
        if step % max(1, steps // 200) == 0:
            history.append({"pairs": (step + 1) * settings.batch, "loss": loss.item()})
        if watch and (step + 1) % max(1, steps // 20) == 0:
            watch(model, (step + 1) * settings.batch)
    return model.cpu(), history


def _collate(items):
    images, texts = zip(*items, strict=True)
    return torch.stack(images), list(texts)


def zero_shot(clip, settings, pictures=400):
    """Image-level average precision of the world's classes on unseen pictures. Returns {class: AP in 0..1}.

    clip: FrozenCLIP. settings: params.Pretrain. A class is present if it covers 1% of a picture.
    """
    size = settings.size
    found = [scenes.render(settings.seed + 1, scenes.PRETRAIN, i, size, size, settings.max_things) for i in range(pictures)]
    classes = clip.embed_classes(scenes.CLASSES, settings.templates)
    images = torch.cat([clip.encode_image(np.stack([s.image for s in found[i : i + 100]])) for i in range(0, pictures, 100)])
    scores = F.normalize(images, dim=-1) @ classes.T
    present = torch.tensor([[name in scene.present for name in scenes.CLASSES] for scene in found])
    precision = MultilabelAveragePrecision(len(scenes.CLASSES), average=None)
    return dict(zip(scenes.CLASSES, precision(scores.sigmoid().cpu(), present.long()).tolist(), strict=True))


def fold_norms(clip, settings):
    """Scale both projections so that text and dense image embeddings have mean norm settings.embedding_norm.

    CLIP's own loss sees only cosines and leaves these norms to chance, but Eq. 2 and 7 take raw dot products. clip: FrozenCLIP,
    changed in place.
    """
    found = [scenes.render(settings.seed + 2, scenes.PRETRAIN, i, settings.size, settings.size) for i in range(64)]
    dense = clip.encode_dense(np.stack([s.image for s in found]))
    texts = clip.encode_text([scene.caption for scene in found])
    with torch.no_grad():
        clip.clip.visual.proj *= settings.embedding_norm / dense.norm(dim=1).mean()
        clip.clip.text_projection *= settings.embedding_norm / texts.norm(dim=-1).mean()


def save(model, settings, folder):
    """Write an open_clip folder: open_clip_config.json and float16 weights, for "local-dir:FOLDER"."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    config = {"model_cfg": model_config(settings), "preprocess_cfg": preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
