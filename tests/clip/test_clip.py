"""The frozen CLIP against open_clip's own modules, on random weights: nothing is downloaded."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from test_dense import plain_clip, randomise, siglip_clip

from ovseg.clip import dense
from ovseg.clip.frozen import FrozenCLIP

pytestmark = pytest.mark.usefixtures("one_thread")

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # OpenAI's


def tokenizer(texts):
    """Stands in for a tokenizer: a number for each letter, then the end, which is the highest."""
    tokens = torch.zeros(len(texts), 77, dtype=torch.long)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor([ord(letter) for letter in text])
        tokens[row, len(text)] = 49407
    return tokens


@pytest.fixture(scope="module", params=["class token", "SigLIP"])
def model(request):
    """A model of either architecture, untouched."""
    return plain_clip() if request.param == "class token" else siglip_clip()


@pytest.fixture(scope="module")
def clip(model):
    return FrozenCLIP(copy.deepcopy(model), tokenizer)  # a copy, because it is changed


TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


def local_dir(folder, weights=True, **vision):
    """A small model as an open_clip folder. Returns the model and the settings that open it."""
    config = {**TINY, "vision_cfg": {**TINY["vision_cfg"], **vision}}
    torch.manual_seed(0)
    model = randomise(open_clip.model.CLIP(**config))
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    if weights:
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model, SimpleNamespace(model=f"local-dir:{folder}", pretrained=None, precision="float32", dense="maskclip", positions="size")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    model, settings = local_dir(tmp_path_factory.mktemp("tiny"))
    return model, FrozenCLIP.open(settings)


def pictures(n, height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def normalised(images, mean=MEAN, std=STD):
    return ((torch.tensor(images) / 255 - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)


def test_modes_read_at_once_are_as_each_alone(clip):
    images = pictures(2, 64, 32)
    found = clip.encode_modes(images, dense.DENSE_MODES)
    assert found.keys() == dense.DENSE_MODES.keys()
    for mode in dense.DENSE_MODES:
        assert found[mode].shape == (2, clip.width, 4, 2) and found[mode].dtype == torch.float32
        torch.testing.assert_close(found[mode], clip.encode_dense(images, mode))
    assert clip.encode_modes(images, ["sclip"]).keys() == {"sclip"}


def test_it_is_never_trained_and_knows_its_sizes(clip, tiny):
    assert not clip.clip.training and not any(parameter.requires_grad for parameter in clip.parameters())
    assert (clip.width, clip.patch, clip.image_size) == (clip.encode_text(["a"]).shape[1], 16, 64)
    assert (tiny[1].width, tiny[1].patch, tiny[1].image_size) == (8, 16, 32)


def test_dense_features_are_those_of_the_tower_from_normalised_images(model, clip):
    visual = copy.deepcopy(model.visual)
    dense.replace_attention(visual)
    images = pictures(2, 32, 64)
    with torch.no_grad():
        expected = dense.dense_features(dense.tower(visual), normalised(images), dense.DENSE_MODES)
    for mode, features in clip.encode_modes(images, dense.DENSE_MODES).items():
        torch.testing.assert_close(features, expected[mode], rtol=1e-4, atol=1e-4)


def test_a_clip_has_a_mode_of_its_own(model):
    images = pictures(1, 32, 32)
    for mode in dense.DENSE_MODES:
        clip = FrozenCLIP(copy.deepcopy(model), tokenizer, mode=mode)
        assert clip.dense == mode and torch.equal(clip.encode_dense(images), clip.encode_dense(images, mode))
    assert FrozenCLIP(copy.deepcopy(model), tokenizer).dense == "maskclip"


def test_an_unknown_mode_and_a_part_of_a_patch_are_named(clip):
    with pytest.raises(ValueError, match="dense = clip, proxy: allowed are clip, maskclip, sclip, clearclip, naclip, pearl"):
        clip.encode_modes(pictures(1, 32, 32), ["clip", "proxy"])
    with pytest.raises(ValueError, match="images of 33x32: .*multiples of CLIP's patch, 16"):
        clip.encode_dense(pictures(1, 32, 33))


def test_whole_images_and_texts_are_encoded_as_the_untouched_model_does(model, clip):
    images, texts = pictures(3, 64, 64), ["a cat", "a photo of a very large dog on grass", "sky"]
    with torch.no_grad():
        image, text = model.encode_image(normalised(images)), model.encode_text(tokenizer(texts))
    torch.testing.assert_close(clip.encode_image(images), image, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(clip.encode_text(texts, batch=2), text, rtol=1e-4, atol=1e-4)
    for found in (image, text):
        assert (found[0] - found[1]).norm() > 0.01 * found[0].norm()


def test_masked_images_are_those_of_clips_mean_colour_where_the_mask_is_0_and_masks_get_gradients(clip):
    images, masks = pictures(2, 64, 64), torch.ones(2, 64, 64)
    torch.testing.assert_close(clip.encode_image(images, masks), clip.encode_image(images))
    masks[0, :8] = 0
    plain = normalised(images, clip.mean, clip.std)
    plain[0, :, :8] = 0
    with torch.no_grad():
        expected = clip.clip.encode_image(plain)
    torch.testing.assert_close(clip.encode_image(images, masks), expected, rtol=1e-4, atol=1e-5)
    assert not clip.encode_image(images).requires_grad
    masks.requires_grad_()
    clip.encode_image(images, masks)[0].sum().backward()
    assert masks.grad[0].any() and not masks.grad[1].any()


def test_bfloat16_is_close_to_float32(clip, model):
    images, texts = pictures(2, 64, 64), ["a cat", "the sky"]
    coarse = FrozenCLIP(copy.deepcopy(model), tokenizer, "bfloat16")
    weights = {parameter.dtype for parameter in coarse.parameters() if parameter.ndim > 1}
    assert torch.bfloat16 in weights  # half the memory traffic
    found, exact = coarse.encode_modes(images, dense.DENSE_MODES), clip.encode_modes(images, dense.DENSE_MODES)
    found |= {"image": coarse.encode_image(images), "text": coarse.encode_text(texts)}
    exact |= {"image": clip.encode_image(images), "text": clip.encode_text(texts)}
    for what in exact:
        assert found[what].dtype == torch.float32
        difference = (found[what] - exact[what]).norm() / exact[what].norm()
        assert 1e-5 < difference < 0.03, what  # equal would mean that it never left float32


def test_a_model_may_be_frozen_again(model, clip):
    images, copied = pictures(1, 32, 32), copy.deepcopy(model)
    for _ in range(2):
        assert torch.equal(FrozenCLIP(copied, tokenizer).encode_dense(images), clip.encode_dense(images))


def test_images_are_normalised_channel_by_channel(clip):
    images = np.zeros((1, 2, 3, 3), dtype=np.uint8)
    images[0, 1, 2] = (255, 51, 0)
    x = clip.normalise(images)
    assert x.shape == (1, 3, 2, 3) and x.dtype == torch.float32
    black = [-0.48145466 / 0.26862954, -0.4578275 / 0.26130258, -0.40821073 / 0.27577711]
    assert x[0, :, 0, 0].tolist() == pytest.approx(black)
    assert x[0, :, 1, 2].tolist() == pytest.approx([black[0] + 1 / 0.26862954, black[1] + 0.2 / 0.26130258, black[2]])


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
    model = randomise(open_clip.create_model(name, pretrained=None))
    images = pictures(1, 64, 96)
    expected = FrozenCLIP(copy.deepcopy(model), None, mode="sclip").encode_dense(images)
    for save, path in [(torch.save, tmp_path / "weights.pt"), (save_file, tmp_path / "weights.safetensors")]:
        save(model.state_dict(), path)
        opened = FrozenCLIP.open(SimpleNamespace(model=name, pretrained=str(path), precision="float32", dense="sclip", positions="size"))
        path.unlink()  # pytest would keep its 170 MB
        assert torch.equal(opened.encode_dense(images), expected)
        assert not any(parameter.requires_grad for parameter in opened.parameters())


def test_a_folder_opens_with_its_weights_and_its_own_mean_and_deviation(tiny):
    model, clip = tiny
    weights, images = clip.clip.state_dict(), pictures(3, 32, 32)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    with torch.no_grad():
        expected = model.encode_image(normalised(images, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    torch.testing.assert_close(clip.encode_image(images), expected, rtol=1e-4, atol=1e-5)


def test_random_weights_are_never_used_for_want_of_others(tmp_path):
    _, settings = local_dir(tmp_path, weights=False)
    with pytest.raises(RuntimeError, match="pretrained weights"):
        FrozenCLIP.open(settings)


RESNET = {"layers": [1, 1, 1, 1], "width": 16, "head_width": 32}
PERCEPTION = {"timm_model_name": "vit_pe_core_tiny_patch16_384", "timm_pool": "map", "timm_proj": None, "image_size": 384}


@pytest.mark.parametrize("vision", [RESNET, {"attentional_pool": True}, PERCEPTION], ids=["resnet", "attention pool", "PE-Core"])
def test_a_tower_that_is_not_read_is_refused_in_a_line_with_what_is_allowed(tmp_path, vision):
    _, settings = local_dir(tmp_path, **vision)
    with pytest.raises(ValueError) as caught:
        FrozenCLIP.open(settings)
    (tmp_path / "open_clip_model.safetensors").unlink()
    assert str(caught.value) == (
        f"clip.model = {settings.model!r}: allowed are models whose image tower is open_clip's plain ViT with a class token, or SigLIP's"
    )


def test_a_tokenizer_that_is_not_installed_is_named(tmp_path, monkeypatch):
    def absent(name):
        raise ModuleNotFoundError("No module named 'transformers'", name="transformers")

    monkeypatch.setattr(open_clip, "get_tokenizer", absent)
    with pytest.raises(ValueError, match=r"clip.model = 'local-dir:.*': its tokenizer needs `pip install transformers`"):
        FrozenCLIP.open(local_dir(tmp_path)[1])
