"""Pretrain the compact CLIP of the rendered world, with image-text contrast only, on pictures that are rendered on demand, each once."""

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..clip.dense import replace_attention
from ..data.captions import nouns
from ..data.files import write_whole
from ..schema import Pretrain
from . import scenes
from .muon import Muon

CONTEXT = 32  # tokens per text: captions of the rendered world are short


@dataclass
class RenderedPairs(Dataset):
    """Pictures rendered on demand, each with settings.views texts: its caption, or a prompt of one of its nouns. An
    item: a (3, S, S) uint8 image, and for each text (text, its nouns, nouns of the caption)."""

    settings: Pretrain

    def __getitem__(self, index):
        s, scene = self.settings, scenes.render(self.settings, scenes.PRETRAIN, index)
        rng = np.random.default_rng([s.seed, scenes.PRETRAIN, index, 1])
        texts, words = [], nouns(scene.caption)
        for _ in range(s.views):
            if not words or rng.random() < s.caption_probability:
                texts.append((scene.caption, words, words))
            else:
                word = words[rng.integers(len(words))]
                texts.append((s.templates[rng.integers(len(s.templates))].format(word), (word,), words))
        return torch.from_numpy(scene.image).permute(2, 0, 1), texts


class Glimpses(nn.Module):
    """Shows the image tower `views` views of each picture, each with a few patches drawn at random: the class token must use what
    each itself shows. With all patches, the tower may gather information in other ones. Replaces open_clip's patch_dropout."""

    def __init__(self, views):
        super().__init__()
        self.views, self.patches = views, None  # the number of patches, set at each step

    def forward(self, x):
        """Tokens (n, 1 + h*w, width), class token first -> (n * views, 1 + patches, width), views of a picture adjacent."""
        if not self.training:
            return x
        x = x.repeat_interleave(self.views, 0)
        seen = torch.rand(len(x), x.shape[1] - 1).topk(self.patches).indices.to(x.device)  # n * views, patches
        return torch.cat([x[:, :1], x.gather(1, 1 + seen[..., None].expand(-1, -1, x.shape[2]))], 1)


def model_config(settings):
    """The open_clip configuration of the compact model. settings: schema.Pretrain."""
    vision = {"image_size": settings.size, "patch_size": settings.patch, "width": settings.vision_width, "layers": settings.vision_layers}
    text = {"width": settings.text_width, "layers": settings.text_layers, "heads": settings.text_width // 64}
    text |= {"context_length": CONTEXT, "vocab_size": 49408}
    return {"embed_dim": settings.embed_dim, "vision_cfg": vision | {"head_width": 64}, "text_cfg": text}


def fits(captions, texts):
    """Which texts name only nouns of a picture's caption: no negatives, (B pictures, B texts) bool. captions, texts: their nouns."""
    return torch.tensor([[set(text) <= set(caption) for text in texts] for caption in captions])


def contrast(image, text, scale, fits):
    """CLIP's loss: symmetric InfoNCE of (B, d) embeddings. fits (B, B) bool: pairs that are not negatives."""
    logits = scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T  # B, B
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.float().masked_fill(fits.to(logits.device) & ~own, -torch.inf)
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def schedule(step, steps):
    """The share of the learning rates at a step: warm-up over 5% of the steps, cosine decay to 0."""
    return min(1, (step + 1) / (0.05 * steps)) * (0.5 + 0.5 * math.cos(math.pi * step / steps))


def optimisers(model, settings):
    """Muon for the matrices of the blocks, AdamW for all else. settings: schema.Pretrain."""
    blocks, decayed, others = [], [], []
    for name, p in model.named_parameters():
        (others if p.ndim < 2 else blocks if "resblocks" in name else decayed).append(p)
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=settings.lr, betas=(0.9, 0.98), fused=True)
    return [Muon(blocks, lr=settings.block_lr, weight_decay=settings.weight_decay), adamw]


def pretrain(settings, device="cpu", checkpoint=None):
    """Train the compact CLIP. settings: schema.Pretrain. checkpoint: path of a file to which the state is written a
    hundred times. A training with the same settings resumes from it, and on a CPU ends as if it had never stopped.
    Returns (model on the CPU, history), history a list of {"pairs", "loss"}."""
    torch.manual_seed(settings.seed)
    model = open_clip.model.CLIP(**model_config(settings)).to(device)
    model.visual.patch_dropout = Glimpses(settings.views)
    replace_attention(model)
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    used, steps = optimisers(model, settings), settings.pictures // settings.batch
    initial = [[group["lr"] for group in optimiser.param_groups] for optimiser in used]
    mark = settings.model_dump_json(exclude={"workers"})
    state = torch.load(checkpoint, map_location="cpu", weights_only=True) if checkpoint and Path(checkpoint).is_file() else {}
    first, history = (state["step"], state["history"]) if state.get("settings") == mark else (0, [])
    if first:
        model.load_state_dict(state["model"])
        for optimiser, kept in zip(used, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        torch.set_rng_state(state["random"])
        print(f"resuming at step {first}, from {checkpoint}")
    rows = range(first * settings.batch, steps * settings.batch)
    # its own generator, so that the loader does not advance the one that draws the glimpses
    options = {"num_workers": settings.workers, "collate_fn": _collate, "generator": torch.Generator()}
    loader = DataLoader(RenderedPairs(settings), settings.batch, sampler=rows, **options)
    bar = tqdm(loader, "pretrain", initial=first, total=steps, mininterval=5)
    for step, (images, texts, named, captions) in enumerate(bar, first):
        for optimiser, rates in zip(used, initial, strict=True):
            for group, rate in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(step, steps)
        model.visual.patch_dropout.patches = settings.patches[torch.randint(len(settings.patches), ())]
        distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}  # each distinct text is encoded once
        with torch.autocast("cuda", torch.bfloat16, enabled=images.to(device).is_cuda):  # CPUs may be much slower in bfloat16
            image = model.encode_image((images.to(device).float() / 255 - mean) / std)
            text = model.encode_text(tokenizer(list(distinct)).to(device))[[distinct[text] for text in texts]]
        loss = contrast(image.float(), text.float(), model.logit_scale.exp(), fits(captions, named))
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in used:
            optimiser.step()
        model.logit_scale.data.clamp_(0, math.log(100))
        if step % max(1, steps // 200) == 0:
            history.append({"pairs": (step + 1) * settings.batch * settings.views, "loss": loss.item()})
        if checkpoint and (step + 1) % max(1, steps // 100) == 0:
            state = {"settings": mark, "step": step + 1, "history": history, "random": torch.get_rng_state()}
            state |= {"model": model.state_dict(), "optimisers": [optimiser.state_dict() for optimiser in used]}
            write_whole(checkpoint, lambda part, state=state: torch.save(state, part))
    model.visual.patch_dropout = nn.Identity()
    return model.cpu(), history


def _collate(items):
    """Images (n, 3, S, S); and for each of n * views pairs: text, its nouns, nouns of the caption."""
    images, texts = zip(*items, strict=True)
    return torch.stack(images), *zip(*itertools.chain(*texts), strict=True)


@torch.no_grad()
def fold(clip, settings):
    """Fold two corrections, measured on 64 pictures and their captions, into the weights of a FrozenCLIP, in place. The last norm of
    the image tower is shifted so that dense image features (MaskCLIP) have mean 0: a component common to all patches hides what each
    shows. Both projections are scaled so that texts and patches have mean norm settings.embedding_norm, which Eq. 2 and 7 use."""
    drawn = [scenes.render(settings, scenes.PRETRAIN, index, offset=2) for index in range(64)]
    images, visual = np.stack([scene.image for scene in drawn]), clip.clip.visual
    visual.ln_post.bias -= clip.encode_dense(images, "maskclip").mean((0, 2, 3)) @ torch.linalg.pinv(visual.proj)
    dense, texts = clip.encode_dense(images, "maskclip"), clip.encode_text([scene.caption for scene in drawn])
    visual.proj *= settings.embedding_norm / dense.norm(dim=1).mean()
    clip.clip.text_projection *= settings.embedding_norm / texts.norm(dim=-1).mean()


def save_clip(model, settings, folder):
    """Write an open_clip folder: open_clip_config.json and float16 weights, for "local-dir:FOLDER"."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    config = {"model_cfg": model_config(settings), "preprocess_cfg": preprocess}
    (Path(folder) / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    weights = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    save_file(weights, Path(folder) / "open_clip_model.safetensors")
