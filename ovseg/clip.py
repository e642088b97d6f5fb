"""The frozen CLIP: dense image features and text embeddings of any open_clip model with a ViT image tower.

Two ways to read dense features off the same tower (`dense`):
    clip      the patch tokens of the unchanged last block: CLIP as it is
    maskclip  attention of the last block replaced by the identity, so that a patch is described by its own value
              vector (Zhou et al. 2022, and MGCA §4.1 after it); residual and MLP stay
Either way `ln_post` and the projection into the joint space follow, and the class token is dropped.
"""

import numpy as np
import open_clip
import torch
import torch.nn.functional as F
from torch import nn

DENSE = ("clip", "maskclip")


class FrozenCLIP(nn.Module):
    """A CLIP that is never trained.

    Attributes: width (d, of the joint space), patch (pixels), image_size (pixels, square, of its pretraining).
    """

    def __init__(self, clip, tokenizer, precision="float32"):
        """clip: an open_clip model, weights loaded; tokenizer: its tokenizer."""
        super().__init__()
        self.clip = clip.eval().requires_grad_(False)
        self.visual = clip.visual
        self.tokenizer = tokenizer
        self.device = self.visual.proj.device
        self.precision = precision
        self.patch = self.visual.patch_size[0]
        self.image_size = self.visual.image_size[0]
        self.width = self.visual.output_dim
        self.mean = getattr(self.visual, "image_mean", open_clip.OPENAI_DATASET_MEAN)
        self.std = getattr(self.visual, "image_std", open_clip.OPENAI_DATASET_STD)

    @classmethod
    def open(cls, settings, device="cpu"):
        """The CLIP that settings (params.Clip) name.

        settings.model: an open_clip architecture ("ViT-B-16-quickgelu"), or "local-dir:FOLDER" with
        open_clip_config.json and weights. settings.pretrained: open_clip's tag ("openai") or the path of a checkpoint;
        None with local-dir. Raises ValueError when its image tower is no ViT with a class token.
        """
        clip = open_clip.create_model(settings.model, settings.pretrained, device=device, require_pretrained=True)
        tower, layers = clip.visual, open_clip.transformer
        plain = isinstance(tower, layers.VisionTransformer) and tower.attn_pool is None and len(set(tower.patch_size)) == 1
        if not plain or not all(type(block) is layers.ResidualAttentionBlock for block in tower.transformer.resblocks):
            raise ValueError(
                f"clip.model = {settings.model!r}: allowed are models whose image tower is open_clip's plain ViT with a class token"
            )
        return cls(clip, open_clip.get_tokenizer(settings.model), settings.precision)

    def _autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16")

    def normalise(self, images):
        """(n, H, W, 3) uint8 -> (n, 3, H, W) float32 on the device, with the tower's mean and deviation."""
        x = torch.from_numpy(np.array(images)).to(self.device).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(v, device=self.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std

    @torch.no_grad()
    def encode_dense(self, images, dense="maskclip"):
        """Dense features in the joint space, not normalised.

        images: (n, H, W, 3) uint8, H and W multiples of the patch. Returns (n, d, H/patch, W/patch) float32.
        """
        return self._dense(self.normalise(images), (dense,))[dense]

    @torch.no_grad()
    def encode_both(self, images):
        """`encode_dense` in both ways of `DENSE`, the blocks they share run once. Returns {way: (n, d, h, w)}."""
        return self._dense(self.normalise(images), DENSE)

    def _dense(self, x, ways):
        if not set(ways) <= set(DENSE):
            raise ValueError(f"dense = {ways}: allowed are {', '.join(DENSE)}")
        if x.shape[2] % self.patch or x.shape[3] % self.patch:
            raise ValueError(f"images of {x.shape[3]}x{x.shape[2]}: allowed are multiples of CLIP's patch, {self.patch}")
        with self._autocast():
            rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
            x = self._embed(x)  # n, 1 + h*w, width of the tower
            *blocks, last = self.visual.transformer.resblocks
            for block in blocks:
                x = block(x)
            out = {}
            for way in ways:
                y = last(x) if way == "clip" else self._identity_attention(last, x)
                y = self.visual.ln_post(y[:, 1:]) @ self.visual.proj  # n, h*w, d
                out[way] = y.float().transpose(1, 2).unflatten(2, (rows, columns))  # n, d, h, w
        return out

    def _embed(self, x):
        """Patch tokens behind the class token, with positions: the tower up to its first block."""
        v = self.visual
        grid = v.conv1(x)  # n, width, h, w
        tokens = grid.flatten(2).transpose(1, 2)
        tokens = torch.cat([v.class_embedding.to(tokens.dtype).expand(len(x), 1, -1), tokens], 1)
        return v.ln_pre(tokens + self._positions(grid.shape[2:]).to(tokens.dtype))

    def _positions(self, grid):
        """Positional embeddings for another grid than the pretraining's: bicubic, the class token's as it is."""
        position = self.visual.positional_embedding
        if tuple(grid) == tuple(self.visual.grid_size):
            return position
        spatial = position[1:].float().unflatten(0, self.visual.grid_size).permute(2, 0, 1)[None]
        spatial = F.interpolate(spatial, tuple(grid), mode="bicubic", align_corners=False)
        return torch.cat([position[:1].float(), spatial[0].flatten(1).T])

    @staticmethod
    def _identity_attention(block, x):
        """The last block when each token attends to itself only: its value goes straight to the output projection."""
        attention = block.attn
        width = attention.embed_dim
        value = F.linear(block.ln_1(x), attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :])
        x = x + block.ls_1(attention.out_proj(value))
        return x + block.ls_2(block.mlp(block.ln_2(x)))

    @torch.no_grad()
    def encode_image(self, images):
        """CLIP's own embedding of whole images, not normalised: (n, H, W, 3) uint8 -> (n, d) float32."""
        with self._autocast():
            return self.clip.encode_image(self.normalise(images)).float()

    @torch.no_grad()
    def encode_text(self, texts, batch=512):
        """Text embeddings in the joint space, not normalised: list of n str -> (n, d) float32."""
        out = []
        for start in range(0, len(texts), batch):
            tokens = self.tokenizer(texts[start : start + batch]).to(self.device)
            with self._autocast():
                out.append(self.clip.encode_text(tokens).float())
        return torch.cat(out)

    def embed_classes(self, names, templates):
        """Class embeddings: each name in each template, encoded, normalised, averaged, normalised. (C, d) float32."""
        prompts = [template.format(name) for name in names for template in templates]
        embeddings = F.normalize(self.encode_text(prompts), dim=-1)
        return F.normalize(embeddings.unflatten(0, (len(names), len(templates))).mean(1), dim=-1)
