"""The frozen CLIP: dense image features and text embeddings of any open_clip model with a ViT image tower (dense.py)."""

import functools
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import nn

from ..data.files import source_digest
from ..schema import LOCAL
from . import attention, dense


def _normalisation(model):
    """{"mean", "std"} that all of open_clip's weights of an architecture need, for weights from a file; OpenAI's, with which open_clip
    trains, if it has none. Raises ValueError if they differ."""
    tags = [open_clip.get_pretrained_cfg(model, tag) for tag in open_clip.list_pretrained_tags_by_model(model)]
    known = {(tag["mean"], tag["std"]) for tag in tags} or {(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)}
    if len(known) > 1:
        cure = "use local-dir:FOLDER with an open_clip_config.json whose preprocess_cfg has those of yours"
        raise ValueError(f"clip.pretrained: weights of {model} differ in the mean and std of their pictures: {cure}")
    return dict(zip(("mean", "std"), *known, strict=True))


class FrozenCLIP(nn.Module):
    """A CLIP that is never trained. Attributes: width (d, of the joint space), patch (pixels), image_size (side of the square
    pretraining images in pixels), dense (default mode, one of dense.DENSE_MODES), positions (`how` of dense.resized)."""

    def __init__(self, clip, tokenizer, precision="float32", mode="maskclip", positions="size"):
        """clip: an open_clip model with loaded weights, changed in place: faster attention, weights in `precision`, float32
        or bfloat16. mode: the attribute `dense`. Raises ValueError if dense.py does not support its image tower."""
        super().__init__()
        self.clip = clip.eval().requires_grad_(False)
        self.tower = dense.tower(clip.visual, positions)
        if self.tower is None:
            raise ValueError("its image tower must be open_clip's plain ViT with a class token, or SigLIP's")
        dense.replace_attention(clip)
        if precision == "bfloat16":  # norms and embeddings stay in float32; open_clip's own conversion fails on SigLIP's texts
            for module in clip.modules():
                if isinstance(module, (nn.Linear, nn.Conv2d, dense.SelfAttention)):
                    module.bfloat16()
        self.tokenizer, self.precision, self.dense, self.positions = tokenizer, precision, mode, positions
        self.device = next(clip.parameters()).device
        self.patch, self.image_size, self.width = self.tower.patch, self.tower.image_size, self.tower.width
        self.mean = getattr(clip.visual, "image_mean", None) or open_clip.OPENAI_DATASET_MEAN
        self.std = getattr(clip.visual, "image_std", None) or open_clip.OPENAI_DATASET_STD

    @classmethod
    def open(cls, settings, device="cpu"):
        """Open a CLIP. settings: schema.Clip, with model: an open_clip architecture ("ViT-B-16-quickgelu"), or "local-dir:FOLDER"
        with open_clip_config.json and weights; and pretrained: open_clip's tag ("openai"), the path of a checkpoint, or None with
        local-dir. Raises ValueError if its image tower is not supported, its tokenizer not installed, or its mean and std not known."""
        local, tagged = settings.model.startswith(LOCAL), open_clip.is_pretrained_cfg(settings.model, settings.pretrained or "")
        options = {"require_pretrained": True, "force_preprocess_cfg": None if local or tagged else _normalisation(settings.model)}
        clip = open_clip.create_model(settings.model, settings.pretrained, device=device, **options)
        if local:
            file = Path(settings.model.removeprefix(LOCAL)) / "open_clip_config.json"
            if not {"mean", "std"} <= json.loads(file.read_text(encoding="utf-8")).get("preprocess_cfg", {}).keys():
                raise ValueError(f"clip.model = {settings.model!r}: {file.name} must hold mean and std in a preprocess_cfg")
        try:
            return cls(clip, open_clip.get_tokenizer(settings.model), settings.precision, settings.dense, settings.positions)
        except ImportError as error:  # SigLIP's tokenizer needs another package
            raise ValueError(f"clip.model = {settings.model!r}: its tokenizer needs `pip install {error.name}`") from None
        except ValueError as error:
            raise ValueError(f"clip.model = {settings.model!r}: {error}") from None

    @functools.cached_property
    def fingerprint(self):
        """Hash of all that its features depend on, except inputs and mode: weights, settings, code, versions and device type."""
        about = [self.positions, self.clip, type(self.tokenizer), self.tokenizer.context_length, self.precision, self.mean, self.std]
        about += [torch.__version__, open_clip.__version__, self.device.type, source_digest(attention, dense, sys.modules[__name__])]
        digest = hashlib.sha256("\n".join(map(str, about)).encode())
        for name, tensor in self.clip.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return digest.hexdigest()

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def normalise(self, images):
        """(n, H, W, 3) uint8 -> (n, 3, H, W) float32 on the device, normalised by the tower's mean and standard deviation."""
        x = torch.from_numpy(np.array(images)).to(self.device).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std

    def encode_dense(self, images, mode=None, mixing=None):
        """Dense features in the joint space, not normalised: (n, H, W, 3) uint8 -> (n, d, H/patch, W/patch) float32. H, W:
        multiples of the patch size. mode: one of dense.DENSE_MODES; None: self.dense. mixing: see dense.dense_features."""
        return self.encode_modes(images, [mode or self.dense], mixing)[mode or self.dense]

    @torch.no_grad()
    def encode_modes(self, images, modes, mixing=None):
        """`encode_dense` in several modes, the blocks they share run once. Returns {mode: (n, d, H/patch, W/patch) float32}."""
        height, width = images.shape[1:3]
        if height % self.patch or width % self.patch:
            raise ValueError(f"images of {width}x{height}: must be multiples of CLIP's patch, {self.patch}")
        with self._autocast():
            return dense.dense_features(self.tower, self.normalise(images), modes, mixing)

    @torch.no_grad()
    def encode_image(self, images):
        """CLIP's own embeddings of whole images, not normalised: (n, S, S, 3) uint8, S = self.image_size -> (n, d) float32."""
        with self._autocast():
            return self.clip.encode_image(self.normalise(images)).float()

    @torch.no_grad()
    def encode_text(self, texts, batch=512):
        """Text embeddings in the joint space, not normalised: list of n str -> (n, d) float32."""
        tokens = (self.tokenizer(texts[start : start + batch]).to(self.device) for start in range(0, len(texts), batch))
        with self._autocast():
            return torch.cat([self.clip.encode_text(of_batch).float() for of_batch in tokens])

    def embed_classes(self, names, templates):
        """Class embeddings: each name in each template, encoded, normalised, averaged, normalised. (C, d) float32."""
        prompts = [template.format(name) for name in names for template in templates]
        embeddings = F.normalize(self.encode_text(prompts), dim=-1)
        return F.normalize(embeddings.unflatten(0, (len(names), len(templates))).mean(1), dim=-1)
