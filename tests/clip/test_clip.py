"""The frozen CLIP against open_clip's own modules, on random weights: nothing is downloaded."""

import copy
import json
from unittest.mock import Mock

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save_file
from test_dense import TEXT, plain_clip, randomise, siglip_clip
from tiny import P

from ovseg.clip import dense
from ovseg.clip.config import check_weights
from ovseg.clip.frozen import FrozenCLIP

VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 16}
TOKENIZER = open_clip.SimpleTokenizer()


@pytest.fixture(scope="module", params=["class token", "SigLIP"])
def model(request):
    """A model of either architecture, untouched."""
    return plain_clip() if request.param == "class token" else siglip_clip()


def frozen(model, *values, **named):
    return FrozenCLIP(copy.deepcopy(model), TOKENIZER, *values, **named)  # a copy, because it is changed


@pytest.fixture(scope="module")
def clip(model):
    return frozen(model)


def local_dir(folder, **vision):
    """Write a small model as an open_clip folder. Returns the model and the settings that open it."""
    config = {"embed_dim": 8, "vision_cfg": VISION | vision, "text_cfg": TEXT}
    torch.manual_seed(0)
    model = randomise(open_clip.model.CLIP(**config))
    preprocess = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return model, settings(f"local-dir:{folder}")


def settings(model, pretrained=None, **values):
    return P.clip.model_copy(update={"model": model, "pretrained": pretrained} | values)


def pictures(n, height, width):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def test_dense_features_are_those_of_the_tower_from_normalised_images(model, clip):
    visual, images = copy.deepcopy(model.visual), pictures(2, 32, 64)
    dense.replace_attention(visual)
    mean, std = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])  # OpenAI's
    with torch.no_grad():
        normalised = ((torch.tensor(images) / 255 - mean) / std).permute(0, 3, 1, 2)
        expected = dense.dense_features(dense.tower(visual), normalised, dense.DENSE_MODES)
    features = clip.encode_modes(images, dense.DENSE_MODES)
    for mode in dense.DENSE_MODES:
        torch.testing.assert_close(features[mode], expected[mode], rtol=1e-4, atol=1e-4)
        alone, own = clip.encode_dense(images, mode), frozen(model, mode=mode)
        torch.testing.assert_close(alone, features[mode])
        assert own.dense == mode and torch.equal(own.encode_dense(images), alone) and alone.shape == (2, clip.width, 2, 4)
    assert clip.dense == "maskclip" and not any(parameter.requires_grad for parameter in clip.parameters())
    assert (clip.width, clip.patch, clip.image_size) == (clip.encode_text(["a"]).shape[1], 16, 64)
    with pytest.raises(ValueError, match="images of 33x32: must be multiples of CLIP's patch, 16"):
        clip.encode_dense(pictures(1, 32, 33))


def test_texts_are_encoded_as_the_untouched_model_does(model, clip):
    texts = ["a cat", "a photo of a very large dog on grass", "sky"]
    with torch.no_grad():
        text = model.encode_text(TOKENIZER(texts))
    torch.testing.assert_close(clip.encode_text(texts, batch=2), text, rtol=1e-4, atol=1e-4)


def test_bfloat16_is_close_to_float32(clip, model):
    coarse, results = frozen(model, "bfloat16"), []
    assert torch.bfloat16 in {parameter.dtype for parameter in coarse.parameters() if parameter.ndim > 1}  # half the memory traffic
    for of in (coarse, clip):
        results.append([*of.encode_modes(pictures(2, 64, 64), dense.DENSE_MODES).values(), of.encode_text(["a cat", "the sky"])])
    for rough, exact in zip(*results, strict=True):
        assert rough.dtype == torch.float32
        assert 1e-5 < (rough - exact).norm() / exact.norm() < 0.03  # equal would mean that it never left float32


def test_fingerprints_follow_all_that_features_depend_on(model, clip):
    other = copy.deepcopy(model)
    next(other.parameters()).data.view(-1)[0] += 1
    clips = [clip, frozen(other), frozen(model, "bfloat16"), frozen(model, positions="scale-factor")]
    assert len({of.fingerprint for of in clips}) == 4 and frozen(model, mode="sclip").fingerprint == clip.fingerprint


def test_a_folder_opens_with_its_weights_its_mean_and_its_positions(tmp_path):
    model, given = local_dir(tmp_path)
    clips = {how: FrozenCLIP.open(given.model_copy(update={"positions": how})) for how in ("size", "scale-factor")}
    images, (mean, std) = pictures(3, 32, 32), (torch.tensor(value)[:, None, None] for value in ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    with torch.no_grad():
        expected = model.encode_image((torch.tensor(images).permute(0, 3, 1, 2) / 255 - mean) / std)
    torch.testing.assert_close(clips["size"].clip.encode_image(clips["size"].normalise(images)), expected, rtol=1e-4, atol=1e-5)
    for side in (32, 64):  # positions are interpolated on other grids only
        one, other = (clip.encode_dense(pictures(1, side, side)) for clip in clips.values())
        assert torch.equal(one, other) == (side == 32)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(RuntimeError, match="pretrained weights"):  # never random ones
        FrozenCLIP.open(given)


def test_a_checkpoint_file_opens_as_the_model_it_was_saved_from(tmp_path):
    name, path = "ViT-S-32-alt", tmp_path / "weights.pt"  # open_clip's smallest
    model, images = randomise(open_clip.create_model(name, pretrained=None)), pictures(1, 64, 96)
    torch.save(model.state_dict(), path)
    opened = FrozenCLIP.open(settings(name, str(path), dense="sclip"))
    check_weights(name, str(path))
    with pytest.raises(ValueError, match=f"clip.pretrained = '{path}': must be a checkpoint of ViT-S-32: tensors alone"):
        check_weights("ViT-S-32", str(path))
    path.unlink()  # pytest would keep its 170 MB
    assert (opened.mean, opened.std) == (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    assert torch.equal(opened.encode_dense(images), FrozenCLIP(model, None, mode="sclip").encode_dense(images))


def test_an_unsupported_tower_and_a_tokenizer_that_is_not_installed_are_named_in_one_line(tmp_path, monkeypatch):
    _, given = local_dir(tmp_path, layers=[1, 1, 1, 1], width=16)  # a ResNet
    with pytest.raises(ValueError) as caught:
        FrozenCLIP.open(given)
    supported = "its image tower must be open_clip's plain ViT with a class token, or SigLIP's"
    assert str(caught.value) == f"clip.model = {given.model!r}: {supported}"
    monkeypatch.setattr(open_clip, "get_tokenizer", Mock(side_effect=ModuleNotFoundError("absent", name="transformers")))
    with pytest.raises(ValueError, match=r"clip.model = 'local-dir:.*': its tokenizer needs `pip install transformers`"):
        FrozenCLIP.open(local_dir(tmp_path)[1])


def test_weights_from_a_file_need_a_mean_that_is_known(tmp_path, monkeypatch):
    create = Mock(side_effect=RuntimeError)
    monkeypatch.setattr(open_clip, "create_model", create)
    for name, mean in {"ViT-B-16-SigLIP": (0.5, 0.5, 0.5), "ViT-B-16": open_clip.OPENAI_DATASET_MEAN}.items():
        with pytest.raises(RuntimeError):
            FrozenCLIP.open(settings(name, "weights.pt"))
        assert create.call_args.kwargs["force_preprocess_cfg"]["mean"] == mean
    with pytest.raises(ValueError, match="weights of ViT-L-14 differ in the mean and std of their pictures: use local-dir:"):
        FrozenCLIP.open(settings("ViT-L-14", "weights.pt"))
    monkeypatch.undo()
    _, given = local_dir(tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config["model_cfg"]}))
    with pytest.raises(ValueError, match="open_clip_config.json must hold mean and std in a preprocess_cfg"):
        FrozenCLIP.open(given)
