"""Dense features against plain matrix products and against open_clip's and timm's untouched modules, on random weights."""

import copy
import itertools
import math

import open_clip
import pytest
import timm
import torch

from ovseg.clip import dense

DENSE_MODES = list(dense.DENSE_MODES)
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
VISION = {"image_size": 64, "layers": 3, "width": 64, "head_width": 16, "patch_size": 16}


def randomise(model, seed=0):
    """Randomise biases, norms and small parts, which start at 0, 1 or nearly so: some errors would not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
            elif parameter.ndim and parameter.std() < 0.03:  # some of timm's: attention would be nearly uniform
                parameter.add_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1]))
    return model.eval()


def plain_clip(**vision):
    """A small CLIP whose image tower is open_clip's plain ViT."""
    torch.manual_seed(0)
    return randomise(open_clip.model.CLIP(8, {**VISION, **vision}, TEXT))


def siglip_vision(pool="map", proj="none", **kwargs):
    """A small TimmModel like SigLIP's. kwargs: of timm's VisionTransformer."""
    torch.manual_seed(0)
    small = {"embed_dim": 48, "depth": 3, "num_heads": 3, "img_size": 64, **kwargs}
    real = timm.create_model
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", lambda name, **more: real(name, **{**more, **small}))
        return open_clip.timm_model.TimmModel("vit_base_patch16_siglip_224", 48, 64, pool=pool, proj=proj)


def siglip_clip(**kwargs):
    """A small CLIP of SigLIP's architecture, text tower included."""
    vision = open_clip.get_model_config("ViT-B-16-SigLIP")["vision_cfg"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_clip.model, "TimmModel", lambda *_, **__: siglip_vision(**kwargs))
        text = {**TEXT, "no_causal_mask": True, "proj_bias": True, "pool_type": "last"}
        return randomise(open_clip.model.CustomTextCLIP(48, vision, text, init_logit_bias=-10))


def features_of(model, images, modes, how="size", mixing=None):
    """dense_features of a copy of the model."""
    visual = copy.deepcopy(model.visual)
    dense.replace_attention(visual)
    with torch.no_grad():
        return dense.dense_features(dense.tower(visual, how), images, modes, mixing)


def noise(n, height, width):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(1))


def bicubic(before, after, factor):
    """The matrix (after, before) of bicubic interpolation by a factor in one dimension, a = -0.75, edges repeated."""
    matrix = torch.zeros(after, before)
    for row in range(after):
        place = (row + 0.5) / factor - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            x = abs(place - tap)
            weight = 1.25 * x**3 - 2.25 * x**2 + 1 if x <= 1 else -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[row, min(max(tap, 0), before - 1)] += weight
    return matrix


def on_grid(positions, before, grid, how):
    """Positions (h*w, width) on another grid. scale-factor: DINO's code asks for 0.1 patches more."""
    if tuple(before) == tuple(grid):
        return positions
    more = 0.1 if how == "scale-factor" else 0
    vertical, horizontal = (bicubic(side, to, (to + more) / side) for side, to in zip(before, grid, strict=True))
    return torch.einsum("yh,xw,hwc->yxc", vertical, horizontal, positions.unflatten(0, tuple(before))).flatten(0, 1)


def neighbours(grid, tokens):
    """What NACLIP adds: exp(-d^2 / (2 * 5^2)) for patches d apart, 0 for the class token."""
    added, first = torch.zeros(tokens, tokens), tokens - grid[0] * grid[1]
    places = torch.cartesian_prod(*(torch.arange(float(side)) for side in grid))
    added[first:, first:] = torch.exp(-(torch.cdist(places, places) ** 2) / 50)
    return added


def shares_of_pearl(q, k, classes):
    """PEARL's attention (n, tokens, tokens) in float64: five Newton-Schulz steps are a recursion on each eigenvalue of m.T m."""
    out = []
    for one_q, one_k in zip(q.double(), k.double(), strict=True):
        weights = one_q.norm(dim=1)
        weights[:classes] = 0
        weights = weights / (weights.sum() + 1e-6)
        centred_q, centred_k = one_q - weights @ one_q, one_k - weights @ one_k
        m = centred_k.T @ centred_q
        scale = max((m.T @ m).square().sum().sqrt().item(), 1e-6)
        values, vectors = torch.linalg.eigh(m.T @ m / scale)
        roots, inverses = values + 1e-6, torch.ones_like(values)
        for _ in range(5):
            step = 1.5 - roots * inverses / 2
            roots, inverses = roots * step, inverses * step
        rotation = m @ vectors @ inverses.diag() @ vectors.T / math.sqrt(scale)
        similar = one_q @ rotation.T @ one_k.T + 0.08 * centred_k @ centred_k.T
        out.append(torch.softmax(similar / math.sqrt(q.shape[-1]), -1))
    return torch.stack(out).float()


def attention(x, heads, weight, bias, mode, grid):
    """The heads' outputs, side by side, from the projections of x (n, tokens, width), one head at a time."""
    q, k, v = (x @ w.T + b for w, b in zip(weight.chunk(3), bias.chunk(3), strict=True))
    side = x.shape[-1] // heads

    def alike(one, other, added=0):
        return torch.softmax(one @ other.transpose(1, 2) / math.sqrt(side) + added, -1)

    shares = {
        "clip": lambda q, k: alike(q, k),
        "maskclip": lambda q, k: torch.eye(q.shape[1]),
        "sclip": lambda q, k: alike(q, q) + alike(k, k),
        "clearclip": lambda q, k: alike(q, q),
        "naclip": lambda q, k: alike(k, k, neighbours(grid, k.shape[1])),
        "pearl": lambda q, k: shares_of_pearl(q, k, k.shape[1] - grid[0] * grid[1]),
    }
    out = [shares[mode](q[..., i : i + side], k[..., i : i + side]) @ v[..., i : i + side] for i in range(0, x.shape[-1], side)]
    return torch.cat(out, -1)


def mixed(x, source):
    """Patches dealt out one by one, each to its own place."""
    out, first = x.clone(), x.shape[1] - source[0].numel()
    for i, of_image in enumerate(source.flatten(1)):
        for place, other in enumerate(of_image, first):
            out[i, place] = x[other, place]
    return out


@torch.no_grad()
def expected(v, images, how, mixing):
    """{mode: features} of open_clip's VisionTransformer or of timm's, whose head is given one patch at a time."""
    siglip = hasattr(v, "trunk")
    own = v.trunk.pos_embed[0] if siglip else v.positional_embedding
    x = (v.trunk.patch_embed.proj if siglip else v.conv1)(images)
    n, _, *grid = x.shape
    x = x.flatten(2).transpose(1, 2) + on_grid(own if siglip else own[1:], (4, 4), grid, how)
    if not siglip:
        x = v.ln_pre(torch.cat([(v.class_embedding + own[0]).expand(n, 1, -1), x], 1))
    *blocks, last = v.trunk.blocks if siglip else v.transformer.resblocks
    for index, block in enumerate([*blocks, torch.nn.Identity()]):
        x = block(mixed(x, mixing[1]) if mixing and index == mixing[0] else x)
    names = ("norm1", "ls1", "norm2", "ls2") if siglip else ("ln_1", "ls_1", "ln_2", "ls_2")
    first_norm, first_scale, second_norm, second_scale = (getattr(last, name) for name in names)
    a = last.attn
    qkv, project = ((a.qkv.weight, a.qkv.bias), a.proj) if siglip else ((a.in_proj_weight, a.in_proj_bias), a.out_proj)
    out = {}
    for mode in DENSE_MODES:
        y = first_scale(project(attention(first_norm(x), a.num_heads, *qkv, mode, grid)))
        if mode not in ("clearclip", "naclip", "pearl"):  # those have no residual connection and no MLP
            y = x + y
            y = y + second_scale(last.mlp(second_norm(y)))
        if siglip:
            y = v.head(v.trunk.forward_head(v.trunk.norm(y).flatten(0, 1)[:, None])).unflatten(0, (n, -1))
        else:
            y = (v.ln_post(y) @ v.proj)[:, 1:]
        out[mode] = y.transpose(1, 2).unflatten(2, grid)
    return out


OWN = (2, 64, 64)
CLIPA = {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True}
VARIANTS = [CLIPA, {"pos_embed_type": "sin_cos_2d"}, {"patch_dropout": 0.5}, {"ls_init_value": 0.5}, {"layers": 1}]
SOURCE = torch.stack([torch.randperm(3, generator=torch.Generator().manual_seed(n)) for n in range(12)]).T.reshape(3, 4, 3)
CASES = [
    *((make, {}, shape, "size", None) for make in (plain_clip, siglip_clip) for shape in (OWN, (1, 32, 80), (1, 144, 96), (2, 16, 16))),
    *((plain_clip, kwargs, (1, 64, 48), "size", None) for kwargs in VARIANTS),
    (siglip_clip, {"init_values": 0.5}, (1, 64, 48), "size", None),
    *((plain_clip, {}, shape, "scale-factor", None) for shape in (OWN, (1, 128, 128), (1, 32, 208))),
    (siglip_clip, {}, (1, 96, 160), "scale-factor", None),
    *((make, {}, (3, 64, 48), "size", (block, SOURCE)) for make in (plain_clip, siglip_clip) for block in range(3)),
]


@pytest.mark.parametrize("make, kwargs, shape, how, mixing", CASES)
def test_dense_features_are_those_of_plain_matrix_products(make, kwargs, shape, how, mixing):
    model, images = make(**kwargs), noise(*shape)
    features = features_of(model, images, DENSE_MODES, how, mixing)
    assert list(features) == DENSE_MODES
    for mode, values in expected(model.visual, images, how, mixing).items():
        assert features[mode].dtype == torch.float32
        torch.testing.assert_close(features[mode], values, rtol=1e-4, atol=1e-4)
    for one, other in itertools.combinations(DENSE_MODES, 2) if shape[1] > 16 else ():  # of one patch, some modes are equal
        assert (features[one] - features[other]).norm() > 0.01 * features[one].norm()


def test_mixing_before_a_block_that_the_tower_lacks_is_an_error():
    with pytest.raises(ValueError, match="mixing before block 3: must be between 0 and 2"):
        features_of(plain_clip(), noise(3, 64, 48), ["clip"], mixing=(3, SOURCE))


def test_replacing_attention_keeps_the_weights_and_their_names():
    small, replaced = plain_clip(), plain_clip()
    for _ in range(2):  # a model may be wrapped again
        dense.replace_attention(replaced)
    before, after = small.state_dict(), replaced.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


PLAIN, POOLING = dense.ClassTokenTower, dense.PoolingTower
ARCHITECTURES = {
    "ViT-B-16-quickgelu": (PLAIN, 512, 16, 224),
    "ViT-L-14-336-quickgelu": (PLAIN, 768, 14, 336),
    "ViT-L-14-CLIPA": (PLAIN, 768, 14, 224),
    "ViT-B-16-SigLIP-512": (POOLING, 768, 16, 512),
    "ViT-SO400M-14-SigLIP-384": (POOLING, 1152, 14, 384),
} | dict.fromkeys(["PE-Core-T-16-384", "RN50", "coca_ViT-B-32", "EVA02-B-16", "convnext_base"])


@pytest.mark.parametrize("name, expected", ARCHITECTURES.items())
def test_architectures_of_open_clip(name, expected):
    with torch.device("meta"):  # no memory, no arithmetic
        tower = dense.tower(open_clip.create_model(name, pretrained=None, device="meta").visual)
    assert (tower and (type(tower), tower.width, tower.patch, tower.image_size)) == expected


SIGLIPS = [
    *({"proj": "linear"}, {"qk_norm": True}, {"scale_attn_norm": True}, {"class_token": True}, {"reg_tokens": 1}, {"pre_norm": True}),
    *({"fc_norm": True}, {"pos_embed": "none"}, {"embed_norm_layer": torch.nn.LayerNorm}, {"num_classes": 5}, {"patch_size": (16, 8)}),
    *({"block_fn": block} for block in (timm.models.vision_transformer.ParallelScalingBlock, timm.models.vision_transformer.ResPostBlock)),
    {"attn_layer": timm.layers.DiffAttention},
    {"pool": "avg", "global_pool": "avg"},
]
PLAINS = [{"attentional_pool": True}, {"patch_size": (16, 8)}, {"block_type": "custom"}, {"qk_norm": True, "block_type": "custom"}]


def test_unsupported_variants_are_rejected():
    assert not [kwargs for kwargs in SIGLIPS if dense.tower(siglip_vision(**kwargs))]
    assert not [vision for vision in PLAINS if dense.tower(plain_clip(**vision).visual)]
