"""Dense features against open_clip's and timm's own, untouched modules and plain matrix products, on random weights."""

import copy
import math

import open_clip
import pytest
import timm
import torch

from ovseg.clip import dense

pytestmark = pytest.mark.usefixtures("one_thread")

DENSE_MODES = list(dense.DENSE_MODES)
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
VISION = {"image_size": 64, "layers": 3, "width": 64, "head_width": 16, "patch_size": 16}


def randomise(model, seed=0):
    """Biases, norms and small parts too: they start at 0, 1 or nearly so, where some errors would not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
            elif parameter.ndim and parameter.std() < 0.03:  # some of timm's: attention would be as good as uniform
                parameter.add_(torch.randn(parameter.shape, generator=generator) / math.sqrt(parameter.shape[-1]))
    return model.eval()


def plain_clip(**vision):
    """A small CLIP whose image tower is open_clip's plain ViT."""
    torch.manual_seed(0)
    return randomise(open_clip.model.CLIP(8, {**VISION, **vision}, TEXT))


def siglip_vision(pool="map", proj="none", **kwargs):
    """A TimmModel as SigLIP's, but small. kwargs: of timm's VisionTransformer."""
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


def opened(model):
    """The tower of a copy of the model, ready to be read."""
    visual = copy.deepcopy(model.visual)
    dense.replace_attention(visual)
    return dense.tower(visual)


def noise(n, height, width, seed=1):
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def small():
    return plain_clip()


# ---- what is expected


def bicubic(before, after):
    """The matrix (after, before) of bicubic interpolation in one dimension, a = -0.75, edges repeated."""
    matrix = torch.zeros(after, before)
    for row in range(after):
        place = (row + 0.5) * before / after - 0.5
        for tap in range(math.floor(place) - 1, math.floor(place) + 3):
            x = abs(place - tap)
            weight = 1.25 * x**3 - 2.25 * x**2 + 1 if x <= 1 else -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
            matrix[row, min(max(tap, 0), before - 1)] += weight
    return matrix


def on_grid(positions, before, grid):
    """Positions (h*w, width) on another grid."""
    if tuple(before) == tuple(grid):
        return positions
    vertical, horizontal = bicubic(before[0], grid[0]), bicubic(before[1], grid[1])
    return torch.einsum("yh,xw,hwc->yxc", vertical, horizontal, positions.unflatten(0, tuple(before))).flatten(0, 1)


ALONE = ("clearclip", "naclip", "pearl")  # without residual connection and MLP


def neighbours(grid, tokens):
    """What NACLIP adds: exp(-d^2 / (2 * 5^2)) for patches d apart, 0 for the class token, pair by pair."""
    added, first = torch.zeros(tokens, tokens), tokens - grid[0] * grid[1]
    places = [(row, column) for row in range(grid[0]) for column in range(grid[1])]
    for i, one in enumerate(places, first):
        for j, other in enumerate(places, first):
            added[i, j] = math.exp(-(math.dist(one, other) ** 2) / 50)
    return added


def shares_of_pearl(q, k, classes):
    """PEARL's attention (n, tokens, tokens) in float64: five Newton-Schulz steps are a recursion on each eigenvalue of m.T m."""
    q, k = q.double(), k.double()
    out = []
    for one_q, one_k in zip(q, k, strict=True):
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


@torch.no_grad()
def expected_plain(v, images):
    """open_clip's VisionTransformer, whose class token takes part as any other. Returns {mode: features}."""
    x = v.conv1(images)
    n, _, *grid = x.shape
    first = (v.class_embedding + v.positional_embedding[0]).expand(n, 1, -1)
    patches = x.flatten(2).transpose(1, 2) + on_grid(v.positional_embedding[1:], v.grid_size, grid)
    x = v.ln_pre(torch.cat([first, patches], 1))
    *blocks, last = v.transformer.resblocks
    for block in blocks:
        x = block(x)
    out = {}
    for mode in DENSE_MODES:
        found = attention(last.ln_1(x), last.attn.num_heads, last.attn.in_proj_weight, last.attn.in_proj_bias, mode, grid)
        found = last.ls_1(last.attn.out_proj(found))
        if mode not in ALONE:
            between = x + found
            found = between + last.ls_2(last.mlp(last.ln_2(between)))
        out[mode] = (v.ln_post(found) @ v.proj)[:, 1:].transpose(1, 2).unflatten(2, grid)
    return out


@torch.no_grad()
def expected_siglip(v, images):
    """timm's VisionTransformer, its head given one patch at a time. Returns {mode: features}."""
    trunk = v.trunk
    x = trunk.patch_embed.proj(images)
    n, _, *grid = x.shape
    x = x.flatten(2).transpose(1, 2) + on_grid(trunk.pos_embed[0], trunk.patch_embed.grid_size, grid)
    *blocks, last = trunk.blocks
    for block in blocks:
        x = block(x)
    out = {}
    for mode in DENSE_MODES:
        found = attention(last.norm1(x), last.attn.num_heads, last.attn.qkv.weight, last.attn.qkv.bias, mode, grid)
        found = last.ls1(last.attn.proj(found))
        if mode not in ALONE:
            between = x + found
            found = between + last.ls2(last.mlp(last.norm2(between)))
        alone = trunk.norm(found).flatten(0, 1)[:, None]  # each patch a sequence of its own
        out[mode] = v.head(trunk.forward_head(alone)).unflatten(0, (n, -1)).transpose(1, 2).unflatten(2, grid)
    return out


def check(model, reference, shape):
    images = noise(*shape)
    with torch.no_grad():
        found = dense.dense_features(opened(model), images, DENSE_MODES)
    expected = reference(model.visual, images)
    assert list(found) == DENSE_MODES
    for mode in DENSE_MODES:
        assert found[mode].shape[2:] == (shape[1] // 16, shape[2] // 16) and found[mode].dtype == torch.float32
        torch.testing.assert_close(found[mode], expected[mode], rtol=1e-4, atol=1e-4)
    for one in DENSE_MODES:  # they would pass for each other otherwise
        for other in DENSE_MODES[: DENSE_MODES.index(one)]:
            assert (found[one] - found[other]).norm() > 0.01 * found[one].norm()


VARIANTS = {
    "CLIPA": {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
    "sines": {"pos_embed_type": "sin_cos_2d"},
    "patch dropout": {"patch_dropout": 0.5},
    "layer scale": {"ls_init_value": 0.5},
    "one block": {"layers": 1},
}


@pytest.mark.parametrize("vision", VARIANTS.values(), ids=VARIANTS)
def test_a_variant_of_the_plain_tower(vision):
    check(plain_clip(**vision), expected_plain, (1, 64, 48))


@pytest.mark.parametrize("shape", [(2, 64, 64), (1, 32, 80), (1, 144, 96)], ids=["own", "smaller", "larger"])
def test_towers_on_the_pretrainings_grid_and_on_others(small, shape):
    check(small, expected_plain, shape)
    check(siglip_clip(), expected_siglip, shape)


def test_a_picture_of_one_patch(small):
    images = noise(2, 16, 16)
    for model, reference in ((small, expected_plain), (siglip_clip(), expected_siglip)):
        with torch.no_grad():
            found = dense.dense_features(opened(model), images, DENSE_MODES)
        expected = reference(model.visual, images)
        for mode in DENSE_MODES:
            torch.testing.assert_close(found[mode], expected[mode], rtol=1e-4, atol=1e-4)


def test_siglips_tower_with_layer_scale():
    check(siglip_clip(init_values=0.5), expected_siglip, (1, 64, 48))


def test_clip_is_what_open_clip_calls_tokens(small):
    """In the pretraining's grid, open_clip hands out the patches' tokens by itself, short of the projection."""
    images, untouched = noise(2, 64, 64), copy.deepcopy(small.visual)
    untouched.output_tokens = True
    with torch.no_grad():
        _, tokens = untouched(images)
        found = dense.dense_features(opened(small), images, ["clip"])["clip"]
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), tokens @ small.visual.proj, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["clip", "maskclip"])  # sclip takes the value twice, clearclip leaves parts out
def test_where_all_patches_are_equal_siglips_whole_image_is_each_patch(mode):
    model = siglip_clip()
    with torch.no_grad():
        model.visual.trunk.pos_embed[:] = model.visual.trunk.pos_embed[:, :1].clone()
        images = noise(2, 1, 1).expand(2, 3, 64, 64)
        found = dense.dense_features(opened(model), images, [mode])[mode]
        whole = model.encode_image(images)
    assert (whole[0] - whole[1]).norm() > 0.01 * whole.norm()
    torch.testing.assert_close(found, whole[:, :, None, None].expand_as(found), rtol=1e-4, atol=1e-4)


# ---- mixing


def deal(images, side, seed=0):
    """For each set of all `images` images and each patch, which one gives it: (images, side, side)."""
    order = torch.stack([torch.randperm(images, generator=torch.Generator().manual_seed(seed + n)) for n in range(side**2)])
    return order.T.reshape(images, side, side)


@pytest.mark.parametrize("make", [plain_clip, siglip_clip])
def test_mixing_before_the_first_block_is_mixing_the_images_themselves(make):
    model, images, source = make(), noise(3, 64, 64), deal(3, 4)
    pieced = torch.empty_like(images)
    for i in range(3):
        for y in range(4):
            for x in range(4):
                part = (slice(None), slice(16 * y, 16 * y + 16), slice(16 * x, 16 * x + 16))
                pieced[i][part] = images[source[i, y, x]][part]
    tower = opened(model)
    with torch.no_grad():
        found = dense.dense_features(tower, images, DENSE_MODES, (0, source))
        expected = dense.dense_features(tower, pieced, DENSE_MODES)
        unmixed = dense.dense_features(tower, images, DENSE_MODES)
    for mode in DENSE_MODES:
        torch.testing.assert_close(found[mode], expected[mode])
        assert (found[mode] - unmixed[mode]).norm() > 0.1 * unmixed[mode].norm()


@pytest.mark.parametrize("block", [1, 2])
def test_mixing_before_a_later_block_is_that_of_open_clips_tokens(small, block):
    """open_clip's own module runs; a hook deals its patches out, one by one, before that block."""
    images, source, untouched = noise(3, 64, 64), deal(3, 4), copy.deepcopy(small.visual)

    def mixed(module, inputs):
        tokens = inputs[0].clone()  # 3, 17, width
        for i in range(3):
            for place in range(16):
                tokens[i, 1 + place] = inputs[0][source[i].flatten()[place], 1 + place]
        return (tokens, *inputs[1:])

    untouched.output_tokens = True
    untouched.transformer.resblocks[block].register_forward_pre_hook(mixed)
    with torch.no_grad():
        _, tokens = untouched(images)
        found = dense.dense_features(opened(small), images, ["clip"], (block, source))["clip"]
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), tokens @ small.visual.proj, rtol=1e-4, atol=1e-4)


def test_maskclip_reads_patches_one_by_one_so_that_mixing_before_the_last_block_is_mixing_after_it(small):
    images, source, tower = noise(3, 64, 64), deal(3, 4), opened(small)
    with torch.no_grad():
        unmixed = dense.dense_features(tower, images, ["maskclip", "clip"])
        found = dense.dense_features(tower, images, ["maskclip", "clip"], (2, source))
    after = {mode: maps.gather(0, source[:, None].expand_as(maps)) for mode, maps in unmixed.items()}
    torch.testing.assert_close(found["maskclip"], after["maskclip"], rtol=1e-4, atol=1e-4)
    assert (found["clip"] - after["clip"]).norm() > 0.01 * after["clip"].norm()


def test_mixing_each_image_with_itself_changes_nothing_and_blocks_that_are_not_there_are_refused(small):
    tower, images = opened(small), noise(2, 64, 64)
    itself = torch.arange(2)[:, None, None].expand(2, 4, 4)
    with torch.no_grad():
        expected = dense.dense_features(tower, images, ["maskclip"])["maskclip"]
        for block in range(3):
            assert torch.equal(dense.dense_features(tower, images, ["maskclip"], (block, itself))["maskclip"], expected)
    with pytest.raises(ValueError, match=r"mixing before block 3: allowed are 0\.\.2"):
        dense.dense_features(tower, images, ["maskclip"], (3, itself))


# ---- modes by hand


def test_naclip_of_equal_keys_is_a_softmax_of_the_distances():
    values = torch.tensor([[1.0, 0], [0, 1], [0, 0]]).view(1, 1, 3, 2)  # the class token, and two patches one above the other
    found = dense.DENSE_MODES["naclip"](torch.randn(1, 1, 3, 2), torch.zeros(1, 1, 3, 2), values, (2, 1))[0, 0]
    near, own = math.exp(math.exp(-1 / 50)), math.e
    expected = [[1 / 3, 1 / 3], [1 / (1 + own + near), own / (1 + own + near)], [1 / (1 + own + near), near / (1 + own + near)]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_pearl_turns_rotated_keys_back():
    """Keys that are queries rotated: what is left is the attention of the queries to themselves, and the share of similar keys."""
    generator = torch.Generator().manual_seed(0)
    half = torch.linalg.qr(torch.randn(20, 8, generator=generator))[0] * 9
    q = torch.cat([half, -half])[None, None]  # mean 0; all directions are as long
    k = q @ torch.linalg.qr(torch.randn(8, 8, generator=generator))[0]
    v = torch.randn(1, 1, 40, 8, generator=generator)
    found = dense.DENSE_MODES["pearl"](q, k, v, (5, 8))
    torch.testing.assert_close(found, torch.softmax(1.08 * q @ q.mT / math.sqrt(8), -1) @ v, rtol=1e-3, atol=1e-3)
    assert (found - torch.softmax(q @ k.mT / math.sqrt(8), -1) @ v).norm() > 0.1 * found.norm()


# ---- attention that is replaced


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_self_attention_is_multihead_attention(heads, causal):
    torch.manual_seed(0)
    own = randomise(torch.nn.MultiheadAttention(32, heads, batch_first=True))
    x = torch.randn(3, 7, 32)
    mask = torch.full((7, 7), -torch.inf).triu(1) if causal else None
    with torch.no_grad():
        expected, _ = own(x, x, x, need_weights=False, attn_mask=mask)
        found, weights = dense.SelfAttention(heads, own.in_proj_weight, own.in_proj_bias, own.out_proj)(x, x, x, attn_mask=mask)
        unmasked, _ = own(x, x, x)
    assert weights is None
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (expected - unmasked).norm() > 0.01 * expected.norm() if causal else torch.allclose(expected, unmasked, atol=1e-5)


def test_replacing_attention_keeps_the_weights_and_their_names(small):
    replaced = copy.deepcopy(small)
    for _ in range(2):  # a model may be wrapped again
        dense.replace_attention(replaced)
    assert not any(isinstance(module, torch.nn.MultiheadAttention) for module in replaced.modules())
    before, after = small.state_dict(), replaced.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


# ---- which towers


PLAIN, POOLING = dense.ClassTokenTower, dense.PoolingTower


@pytest.mark.parametrize(
    "name, kind, width, patch, size",
    [
        ("ViT-B-16-quickgelu", PLAIN, 512, 16, 224),
        ("ViT-L-14-336-quickgelu", PLAIN, 768, 14, 336),
        ("ViT-H-14-378-quickgelu", PLAIN, 1024, 14, 378),
        ("ViT-L-14-CLIPA", PLAIN, 768, 14, 224),
        ("ViT-B-16-SigLIP-512", POOLING, 768, 16, 512),
        ("ViT-L-16-SigLIP2-256", POOLING, 1024, 16, 256),
        ("ViT-SO400M-14-SigLIP-384", POOLING, 1152, 14, 384),
        ("PE-Core-T-16-384", None, None, None, None),
        ("RN50", None, None, None, None),
        ("coca_ViT-B-32", None, None, None, None),
        ("EVA02-B-16", None, None, None, None),
        ("convnext_base", None, None, None, None),
    ],
)
def test_architectures_of_open_clip(name, kind, width, patch, size):
    with torch.device("meta"):  # no memory, no arithmetic
        tower = dense.tower(open_clip.create_model(name, pretrained=None, device="meta").visual)
    if kind is None:
        assert tower is None
    else:
        assert type(tower) is kind and (tower.width, tower.patch, tower.image_size) == (width, patch, size)


OTHER_SIGLIPS = [
    *({"proj": "linear"}, {"qk_norm": True}, {"scale_attn_norm": True}, {"class_token": True}, {"reg_tokens": 1}, {"pre_norm": True}),
    *({"fc_norm": True}, {"pos_embed": "none"}, {"embed_norm_layer": torch.nn.LayerNorm}, {"num_classes": 5}, {"patch_size": (16, 8)}),
    *({"block_fn": timm.models.vision_transformer.ParallelScalingBlock}, {"attn_layer": timm.layers.DiffAttention}),
    {"pool": "avg", "global_pool": "avg"},
]


@pytest.mark.parametrize("kwargs", OTHER_SIGLIPS, ids=lambda kwargs: next(iter(kwargs)))
def test_what_siglip_lacks_is_not_read_over(kwargs):
    assert dense.tower(siglip_vision(**kwargs)) is None


OTHER_TOWERS = [
    *({"attentional_pool": True}, {"attentional_pool": "parallel"}, {"patch_size": (16, 8)}),
    *({"block_type": "custom"}, {"qk_norm": True, "block_type": "custom"}),
]


@pytest.mark.parametrize("vision", OTHER_TOWERS, ids=lambda vision: next(iter(vision)))
def test_what_the_plain_tower_lacks_is_not_read_over(vision):
    assert dense.tower(plain_clip(**vision).visual) is None
