"""The frozen CLIP against open_clip's own modules, on random weights: nothing is downloaded."""

import json
import math
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ovseg.clip import DENSE, FrozenCLIP
from ovseg.shards import square

NAME = "ViT-B-16-quickgelu"
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's


def randomise(model, seed):
    """Biases and norms too: open_clip starts them at 0 and 1, where some errors would not show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return randomise(open_clip.create_model(NAME, pretrained=None), 0)


@pytest.fixture(scope="module")
def clip(model):
    return FrozenCLIP(model, open_clip.get_tokenizer(NAME))


TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


def local_dir(folder, weights=True, **vision):
    """A small model as an open_clip folder. Returns the model and the settings that open it."""
    config = {**TINY, "vision_cfg": {**TINY["vision_cfg"], **vision}}
    torch.manual_seed(0)
    model = randomise(open_clip.model.CLIP(**config), 0)
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    if weights:
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model, SimpleNamespace(model=f"local-dir:{folder}", pretrained=None, precision="float32")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    model, settings = local_dir(tmp_path_factory.mktemp("tiny"))
    return model, FrozenCLIP.open(settings)


def pictures(n, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def normalised(images, mean=MEAN, std=STD):
    return ((torch.tensor(images) / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)


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


@torch.no_grad()
def dense_reference(visual, images):
    """open_clip's own modules; for MaskCLIP a mask lets each token of the last block attend to itself only."""
    x = visual.conv1(normalised(images))
    n, width, rows, columns = x.shape
    grid = visual.positional_embedding[1:].unflatten(0, visual.grid_size)
    if (rows, columns) != visual.grid_size:
        vertical, horizontal = bicubic(visual.grid_size[0], rows), bicubic(visual.grid_size[1], columns)
        grid = torch.einsum("yh,xw,hwc->yxc", vertical, horizontal, grid)
    patches = x.permute(0, 2, 3, 1).reshape(n, rows * columns, width) + grid.reshape(1, rows * columns, width)
    first = (visual.class_embedding + visual.positional_embedding[0]).expand(n, 1, width)
    x = visual.ln_pre(torch.cat([first, patches], 1))
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
    itself = torch.full((x.shape[1], x.shape[1]), -torch.inf).fill_diagonal_(0)
    joint = {way: visual.ln_post(last(x, attn_mask=mask)) @ visual.proj for way, mask in [("clip", None), ("maskclip", itself)]}
    return {way: y[:, 1:].reshape(n, rows, columns, -1).permute(0, 3, 1, 2) for way, y in joint.items()}


@pytest.mark.parametrize("shape", [(2, 32, 64), (1, 224, 224)], ids=str)
def test_dense_features_are_those_of_open_clips_modules(clip, model, shape):
    images = pictures(*shape)
    both, expected = clip.encode_both(images), dense_reference(model.visual, images)
    assert both.keys() == expected.keys() == set(DENSE)
    for way in DENSE:
        assert both[way].shape == (shape[0], 512, shape[1] // 16, shape[2] // 16) and both[way].dtype == torch.float32
        torch.testing.assert_close(both[way], expected[way], rtol=1e-4, atol=1e-4)
    # the two would pass for each other otherwise
    assert (both["clip"] - both["maskclip"]).norm() > 0.01 * both["clip"].norm()


def test_encoding_both_ways_at_once_gives_what_each_gives_alone(tiny):
    _, clip = tiny
    images = pictures(2, 64, 32)
    both = clip.encode_both(images)
    torch.testing.assert_close(both["maskclip"], clip.encode_dense(images))  # the default
    torch.testing.assert_close(both["clip"], clip.encode_dense(images, "clip"))


def test_bfloat16_is_close_to_float32(clip, model):
    images = pictures(1, 64, 64)
    coarse = FrozenCLIP(model, clip.tokenizer, "bfloat16").encode_both(images)
    for way, exact in clip.encode_both(images).items():
        assert coarse[way].dtype == torch.float32
        difference = (coarse[way] - exact).norm() / exact.norm()
        assert 1e-5 < difference < 0.03  # equal would mean that it never left float32


def test_it_is_never_trained(clip):
    assert not clip.clip.training
    assert not any(parameter.requires_grad for parameter in clip.parameters())


def test_it_knows_its_sizes(clip, tiny):
    assert (clip.width, clip.patch, clip.image_size) == (512, 16, 224)
    assert (tiny[1].width, tiny[1].patch, tiny[1].image_size) == (8, 16, 32)


def test_images_are_normalised_channel_by_channel(clip):
    images = np.zeros((1, 2, 3, 3), dtype=np.uint8)
    images[0, 1, 2] = (255, 51, 0)
    x = clip.normalise(images)
    assert x.shape == (1, 3, 2, 3) and x.dtype == torch.float32
    black = [-0.48145466 / 0.26862954, -0.4578275 / 0.26130258, -0.40821073 / 0.27577711]
    assert x[0, :, 0, 0].tolist() == pytest.approx(black)
    assert x[0, :, 1, 2].tolist() == pytest.approx([black[0] + 1 / 0.26862954, black[1] + 0.2 / 0.26130258, black[2]])


def test_positions_are_unchanged_on_the_grid_of_the_pretraining(clip, model):
    assert torch.equal(clip._positions((14, 14)), model.visual.positional_embedding)


@pytest.mark.parametrize("grid", [(28, 28), (4, 6), (14, 7)], ids=str)
def test_positions_on_another_grid_are_bicubic_behind_the_class_tokens_own(clip, model, grid):
    position = model.visual.positional_embedding
    actual = clip._positions(grid)
    assert torch.equal(actual[0], position[0])
    expected = torch.einsum("yh,xw,hwc->yxc", bicubic(14, grid[0]), bicubic(14, grid[1]), position[1:].unflatten(0, (14, 14)))
    torch.testing.assert_close(actual[1:], expected.flatten(0, 1), rtol=1e-4, atol=1e-5)


def test_constant_positions_stay_constant_on_another_grid(tmp_path):
    clip = FrozenCLIP.open(local_dir(tmp_path)[1])
    position = clip.visual.positional_embedding  # 1 + 2*2, 64
    position[0] = -1
    position[1:] = torch.arange(64.0)
    actual = clip._positions((5, 9))
    assert actual.shape == (46, 64) and torch.equal(actual[0], position[0])
    torch.testing.assert_close(actual[1:], torch.arange(64.0).expand(45, -1), rtol=1e-5, atol=1e-5)


def test_whole_images_are_encoded_as_open_clip_does(tiny):
    model, clip = tiny
    images = pictures(3, 32, 32)
    with torch.no_grad():
        expected = model.encode_image(normalised(images, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    torch.testing.assert_close(clip.encode_image(images), expected, rtol=1e-4, atol=1e-5)


def test_texts_are_encoded_as_open_clip_does_in_any_batch(tiny):
    model, clip = tiny
    texts = ["a cat", "a photo of a very large dog on grass", "sky"]
    with torch.no_grad():
        expected = model.encode_text(open_clip.tokenize(texts))
    actual = clip.encode_text(texts, batch=2)
    assert actual.shape == (3, 8) and (actual[0] - actual[1]).norm() > 0.1 * actual[0].norm()
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_a_class_is_the_normalised_mean_of_its_normalised_prompts(tiny):
    _, clip = tiny
    names, templates = ["cat", "traffic light"], ["a photo of a {}.", "{}", "art of the {}."]
    actual = clip.embed_classes(names, templates)
    for name, embedding in zip(names, actual, strict=True):
        mean = torch.zeros(8)
        for template in templates:
            text = clip.encode_text([template.replace("{}", name)])[0]
            mean += text / text.square().sum().sqrt() / len(templates)
        torch.testing.assert_close(embedding, mean / mean.square().sum().sqrt(), rtol=1e-4, atol=1e-5)
        assert embedding.square().sum().item() == pytest.approx(1)
    assert (actual[0] - actual[1]).norm() > 1e-2


def test_a_checkpoint_file_opens_as_the_model_it_was_saved_from(tmp_path):
    name = "ViT-S-32-alt"  # open_clip's smallest
    model = randomise(open_clip.create_model(name, pretrained=None), 0)
    images = pictures(1, 64, 96)
    expected = FrozenCLIP(model, None).encode_dense(images)
    for save, path in [(torch.save, tmp_path / "weights.pt"), (save_file, tmp_path / "weights.safetensors")]:
        save(model.state_dict(), path)
        opened = FrozenCLIP.open(SimpleNamespace(model=name, pretrained=str(path), precision="float32"))
        path.unlink()  # pytest would keep its 170 MB
        assert torch.equal(opened.encode_dense(images), expected)
        assert not any(parameter.requires_grad for parameter in opened.parameters())


def test_a_folder_opens_with_its_weights_and_its_own_mean_and_deviation(tiny):
    model, clip = tiny
    weights = clip.clip.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert (tuple(clip.mean), tuple(clip.std)) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_random_weights_are_never_used_for_want_of_others(tmp_path):
    _, settings = local_dir(tmp_path, weights=False)
    with pytest.raises(RuntimeError, match="pretrained weights"):
        FrozenCLIP.open(settings)


RESNET = dict(layers=[1, 1, 1, 1], width=16, head_width=32)


@pytest.mark.parametrize("vision", [RESNET, dict(attentional_pool=True)], ids=["resnet", "attention pool"])
def test_a_tower_without_class_token_is_refused_by_name(tmp_path, vision):
    _, settings = local_dir(tmp_path, **vision)
    with pytest.raises(ValueError, match="clip.model = 'local-dir:"):
        FrozenCLIP.open(settings)


def test_a_square_image_of_the_right_size_is_returned_unchanged():
    pixels = pictures(1, 24, 24)[0]
    assert np.array_equal(square(Image.fromarray(pixels), 24), pixels)


@pytest.mark.parametrize(("width", "height"), [(100, 61), (61, 100), (7, 5), (32, 32), (333, 334), (64, 16), (1, 1), (33, 32)])
def test_square_is_of_the_size_asked_for(width, height):
    image = Image.new("RGB", (width, height), (10, 20, 30))
    cropped = square(image, 32)
    assert cropped.shape == (32, 32, 3) and cropped.dtype == np.uint8
    assert (cropped == (10, 20, 30)).all()


def test_square_cuts_the_middle_out_of_an_image_of_the_right_height_or_width():
    pixels = pictures(1, 16, 40)[0]
    assert np.array_equal(square(Image.fromarray(pixels), 16), pixels[:, 12:28])
    assert np.array_equal(square(Image.fromarray(pixels.transpose(1, 0, 2)), 16), pixels[:, 12:28].transpose(1, 0, 2))


def test_square_keeps_the_aspect():
    bars = np.repeat(np.array([0, 80, 160, 240], dtype=np.uint8), 16)[None, :, None].repeat(32, 0).repeat(3, 2)  # 32, 64, 3
    cropped = square(Image.fromarray(bars), 16)
    assert (cropped[:, 2:6] == 80).all() and (cropped[:, 10:14] == 160).all()  # the two in the middle, 8 wide each
    assert np.array_equal(square(Image.fromarray(bars[:, 16:48]), 16), np.asarray(Image.fromarray(bars[:, 16:48]).resize((16, 16), 3)))
