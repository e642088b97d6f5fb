"""Dense features: one feature per patch from an image tower that was trained to embed whole images. Modes (DENSE_MODES)
differ only in the last block. The final norm and projection into the joint space are then applied to each patch."""

import re
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from open_clip import transformer as layers
from open_clip.timm_model import TimmModel
from torch import nn

from .attention import ATTENTION_ALONE, DENSE_MODES, attend

POOLING = {  # names of the weights of SigLIP's image tower, without the numbers of its blocks; layer scales are optional
    *("pos_embed", "patch_embed.proj", "norm", "attn_pool.latent", "attn_pool.q", "attn_pool.kv", "attn_pool.proj", "attn_pool.norm"),
    *("attn_pool.mlp.fc1", "attn_pool.mlp.fc2", "blocks.norm1", "blocks.norm2", "blocks.attn.qkv", "blocks.attn.proj"),
    *("blocks.mlp.fc1", "blocks.mlp.fc2"),
}


class SelfAttention(nn.Module):
    """Self-attention with the parameter names of nn.MultiheadAttention and a selectable mode for the last block. PyTorch's version
    takes 15 times as long on a CPU in bfloat16. weight (3 * width, width) and bias (3 * width) stack queries, keys and values."""

    def __init__(self, heads, weight, bias, out_proj):
        super().__init__()
        self.heads, self.in_proj_weight, self.in_proj_bias, self.out_proj = heads, weight, bias, out_proj

    def extra_repr(self):
        return f"heads={self.heads}"

    def forward(self, x, *_, mode="clip", grid=None, attn_mask=None, need_weights=False):
        """x (n, tokens, width) -> (attended, None). grid: patches (rows, columns). attn_mask: additive, for mode "clip" only."""
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # n, tokens, 3 * width
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each n, heads, tokens, width / heads
        heads = DENSE_MODES[mode](q, k, v, grid) if attn_mask is None else attend(q, k, v, attn_mask.to(q.dtype))
        return self.out_proj(heads.transpose(1, 2).flatten(2)), None


def replace_attention(model):
    """Replace the attention of every plain block of an open_clip model by SelfAttention with the same weights. Idempotent."""
    for block in model.modules():
        if type(block) is layers.ResidualAttentionBlock and not isinstance(block.attn, SelfAttention):
            old = block.attn
            block.attn = SelfAttention(old.num_heads, old.in_proj_weight, old.in_proj_bias, old.out_proj)


def last_block(block, x, mode, grid):
    """Run the last block in one of DENSE_MODES: x (n, tokens, width) -> same shape. grid: patches (rows, columns)."""
    attended = block.ls_1(block.attn(block.ln_1(x), mode=mode, grid=grid)[0])
    if mode in ATTENTION_ALONE:
        return attended
    x = x + attended
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def resized(positions, before, grid, how="size"):
    """Bicubic interpolation of positional embeddings (h*w, width) from the grid `before` to `grid`. how: "size"
    aligns patch centres with their positions in the image. "scale-factor" follows DINO's code, as do SCLIP and
    ClearCLIP: its factor is of a grid 0.1 patches longer, which shifts positions slightly to the left and top."""
    if tuple(grid) == tuple(before):
        return positions
    factors = tuple((after + 0.1) / side for after, side in zip(grid, before, strict=True))
    target = {"scale_factor": factors} if how == "scale-factor" else {"size": tuple(grid)}
    spatial = positions.float().unflatten(0, tuple(before)).permute(2, 0, 1)[None]  # 1, width, h, w
    return F.interpolate(spatial, **target, mode="bicubic", align_corners=False)[0].flatten(1).T


class ClassTokenTower:
    """open_clip's plain ViT with a class token: OpenAI's, LAION's, DataComp's, DFN's, MetaCLIP's."""

    def __init__(self, visual, positions="size"):
        self.visual, self.positions = visual, positions
        self.patch, self.image_size, self.width = visual.patch_size[0], visual.image_size[0], visual.output_dim
        *self.blocks, self.last = visual.transformer.resblocks

    @staticmethod
    def fits(visual):
        plain = isinstance(visual, layers.VisionTransformer) and visual.attn_pool is None and len(set(visual.patch_size)) == 1
        return plain and all(type(block) is layers.ResidualAttentionBlock for block in visual.transformer.resblocks)

    def embed(self, x):
        """Class token and patch tokens with positional embeddings: (n, 3, H, W) -> (n, 1 + h*w, width)."""
        v = self.visual
        grid = v.conv1(x)  # n, width, h, w
        tokens = torch.cat([v.class_embedding.to(grid.dtype).expand(len(x), 1, -1), grid.flatten(2).transpose(1, 2)], 1)
        own = v.positional_embedding  # class token (not interpolated), then the pretraining grid
        positions = torch.cat([own[:1], resized(own[1:], v.grid_size, grid.shape[2:], self.positions).to(own.dtype)])  # 1 + h*w, width
        return v.ln_pre(tokens + positions.to(tokens.dtype))

    def joint(self, x):
        """Project patch tokens into the joint space: (n, 1 + h*w, width) -> (n, h*w, d)."""
        return self.visual.ln_post(x[:, 1:]) @ self.visual.proj


class PoolingTower:
    """SigLIP's ViT: no class token; an attention pool over all patches maps into the joint space. The joint embedding
    of a patch is the pool's output for it alone: attention over one token is the identity on its value."""

    def __init__(self, visual, positions="size"):
        self.trunk, self.positions, trunk = visual.trunk, positions, visual.trunk
        self.patch, self.image_size, self.width = trunk.patch_embed.patch_size[0], visual.image_size[0], trunk.attn_pool.out_features
        *self.blocks, last = trunk.blocks
        attn = SelfAttention(last.attn.num_heads, last.attn.qkv.weight, last.attn.qkv.bias, last.attn.proj)
        self.last = SimpleNamespace(attn=attn, ln_1=last.norm1, ls_1=last.ls1, ln_2=last.norm2, ls_2=last.ls2, mlp=last.mlp)

    @staticmethod
    def fits(visual):
        from timm.models.vision_transformer import Block, VisionTransformer  # takes a second

        if not isinstance(visual, TimmModel) or type(visual.trunk) is not VisionTransformer or visual.head.state_dict():
            return False
        names = {re.sub(r"(?<=blocks)\.\d+|\.(weight|bias)$", "", name) for name in visual.trunk.state_dict()}
        square = len(set(visual.trunk.patch_embed.patch_size)) == 1
        return square and names - {"blocks.ls1.gamma", "blocks.ls2.gamma"} == POOLING and all(type(b) is Block for b in visual.trunk.blocks)

    def embed(self, x):
        """Like ClassTokenTower.embed, without a class token: (n, 3, H, W) -> (n, h*w, width)."""
        grid = self.trunk.patch_embed.proj(x)  # n, width, h, w
        positions = resized(self.trunk.pos_embed[0], self.trunk.patch_embed.grid_size, grid.shape[2:], self.positions)  # h*w, width
        return grid.flatten(2).transpose(1, 2) + positions.to(grid.dtype)

    def joint(self, x):
        """Like ClassTokenTower.joint: (n, h*w, width) -> (n, h*w, d)."""
        pool, width = self.trunk.attn_pool, x.shape[-1]
        x = pool.proj(F.linear(self.trunk.norm(x), pool.kv.weight[width:], pool.kv.bias[width:]))  # values only; kv stacks keys, values
        return x + pool.mlp(pool.norm(x))


def tower(visual, positions="size"):
    """The tower of an open_clip model's `visual`, or None if it is not supported. positions: `how` of `resized`."""
    return next((kind(visual, positions) for kind in (ClassTokenTower, PoolingTower) if kind.fits(visual)), None)


def mix_patches(x, source):
    """Mix patches of images, which keep their positions: x (n, tokens, width); source (n, h, w) int64, the image of each patch."""
    classes = x.shape[1] - source[0].numel()  # a class token stays with its image
    places = source.flatten(1)[:, :, None].expand(-1, -1, x.shape[2])  # n, h*w, width
    return torch.cat([x[:, :classes], x[:, classes:].gather(0, places)], 1)


def dense_features(tower, x, modes, mixing=None):
    """Dense features in several modes; the blocks they share run once. Returns {mode: (n, d, H/patch, W/patch)
    float32}. x (n, 3, H, W): normalised images, H and W multiples of tower.patch. mixing: (block, source) mixes patches
    by `mix_patches` before block number `block`, counted from 0. Raises ValueError if the tower has no such block."""
    grid = x.shape[2] // tower.patch, x.shape[3] // tower.patch
    at, source = mixing or (None, None)
    if at is not None and at > len(tower.blocks):
        raise ValueError(f"mixing before block {at}: must be between 0 and {len(tower.blocks)}, the last block of this CLIP")
    x = tower.embed(x)
    for index, block in enumerate([*tower.blocks, nn.Identity()]):
        x = block(mix_patches(x, source) if index == at else x)
    features = {mode: tower.joint(last_block(tower.last, x, mode, grid)) for mode in modes}  # n, h*w, d
    return {mode: y.float().transpose(1, 2).unflatten(2, grid) for mode, y in features.items()}
