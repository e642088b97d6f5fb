"""Published CLIPs without training: names, windows, and one line for all that can be wrong. Random weights stand for published ones."""

import argparse
import json

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import errors
from safetensors.torch import save_file
from tiny import P, picture

from ovseg import Segmenter
from ovseg.segmentation import published

SMALL = "ViT-S-32-alt"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights of SMALL."""
    file = tmp_path_factory.mktemp("weights") / "small.safetensors"
    torch.manual_seed(0)
    save_file(open_clip.create_model(SMALL).state_dict(), file)
    return str(file)


def test_names_are_split_at_the_first_slash_and_folders_come_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ViT-B-16/openai").mkdir(parents=True)
    for name, parsed in {
        "ViT-L-14/openai": ("ViT-L-14", "openai"), "ViT-L-14/a/b.pt": ("ViT-L-14", "a/b.pt"), "ViT-L-14//a/b.pt": ("ViT-L-14", "/a/b.pt"),
        "ViT-L-14": ("ViT-L-14", None), "hf-hub:timm/ViT": ("hf-hub:timm/ViT", None), "local-dir:a/b": ("local-dir:a/b", None),
        "ViT-B-16/openai": ("local-dir:ViT-B-16/openai", None),
    }.items():  # fmt: skip
        assert published.parse(name) == parsed


def test_windows_are_the_papers_and_multiples_of_the_patch():
    for patch, image_size, window in [(16, 224, 448), (14, 224, 448), (14, 336, 448), (32, 224, 448), (16, 384, 448), (8, 128, 256)]:
        s = published.settings(patch, image_size)
        assert (s.short_side, s.window, s.stride) == (window, window, window // 2) and s.window % patch == 0
    assert s.templates == P.segment.templates  # TCL's nine


def test_a_file_of_weights_and_a_folder_give_the_labels_of_open_clips_own_model(weights, tmp_path):
    """One window of a picture of its size: each patch's own value through the last block, projected, against the mean of the prompts."""
    model = open_clip.create_model(SMALL, weights).eval()
    preprocess = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    config = {"model_cfg": open_clip.get_model_config(SMALL), "preprocess_cfg": preprocess}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    (tmp_path / "open_clip_model.safetensors").symlink_to(weights)
    segmenter, names = Segmenter.untrained(SMALL, weights, dense="maskclip", device="cpu"), ["a", "dog", "blue sky"]
    found = segmenter.segment(picture(448, 448), names)
    same = Segmenter.untrained(f"local-dir:{tmp_path}", dense="maskclip", device="cpu").segment(picture(448, 448), names)
    assert np.array_equal(found.labels, same.labels)
    with torch.no_grad():
        prompts = open_clip.get_tokenizer(SMALL)([t.format(name) for name in names for t in P.segment.templates])
        texts = torch.nn.functional.normalize(model.encode_text(prompts), dim=-1).unflatten(0, (3, -1)).mean(1)
        pixels = segmenter.clip.encode_dense(picture(448, 448)[None], "maskclip")[0].flatten(1).T
        scores = torch.nn.functional.normalize(pixels, dim=-1) @ torch.nn.functional.normalize(texts, dim=-1).T
    best = scores.argmax(1).view(14, 14).numpy()
    centres = found.labels[16::32, 16::32]  # at a patch's centre, half of the score of each of four equal embeddings is its own
    assert (centres == best).mean() > 0.9 and len(np.unique(best)) > 1


def test_a_file_that_is_no_checkpoint_of_the_model_is_one_line(weights, tmp_path):
    torch.save({"args": argparse.Namespace(lr=1)}, tmp_path / "namespace.pt")
    torch.save({"vision_model.embeddings.class_embedding": torch.zeros(3)}, tmp_path / "transformers.bin")
    (tmp_path / "text.pt").write_text("no weights")
    for model, file, message in [
        (SMALL, tmp_path / "namespace.pt", "nothing else is unpickled"),
        (SMALL, tmp_path / "transformers.bin", "Missing key"),
        (SMALL, tmp_path / "text.pt", "nothing else is unpickled"),
        ("ViT-S-16-alt", weights, "size mismatch"),
    ]:
        with pytest.raises(ValueError, match=message) as raised:
            Segmenter.untrained(model, str(file), device="cpu")
        assert "\n" not in str(raised.value) and str(raised.value).startswith(f"{model}/{file}") and len(str(raised.value)) < 600
    with pytest.raises(ValueError, match="dense = 'sclap': must be one of clip, maskclip, sclip"):
        Segmenter.untrained(SMALL, weights, "sclap")


@pytest.mark.parametrize("error", [ConnectionError("no route"), errors.HFValidationError("bad name")])
def test_without_a_download_one_line_says_which_file_is_needed(monkeypatch, tmp_path, error):
    def fails(url):
        asked.append(url)
        raise error

    asked = []
    monkeypatch.setattr(published.hf, "get_hf_file_metadata", fails)
    monkeypatch.setattr(published.hf, "try_to_load_from_cache", lambda *_: None)
    for model, tag, line in [
        ("ViT-B-16-quickgelu", "openai", f"ViT-B-16-quickgelu: no download ({error}); needed is open_clip_model.safetensors from "
         "https://huggingface.co/timm/vit_base_patch16_clip_224.openai: save it, and give its path in place of 'openai'"),
        ("hf-hub:me/mine", None, f"hf-hub:me/mine: no download ({error}); needed is open_clip_config.json and open_clip_model.safetensors "
         "from https://huggingface.co/me/mine: save both in a folder, and give the folder"),
    ]:  # fmt: skip
        with pytest.raises(FileNotFoundError) as raised:
            Segmenter.untrained(model, tag, device="cpu")
        assert str(raised.value) == line and asked.pop().endswith("/open_clip_model.safetensors")


def test_a_model_of_the_hub_in_the_cache_needs_no_network(weights, monkeypatch):
    """The Hub is a function that gives local files; open_clip reads the model from them."""
    config = open_clip.get_model_config(SMALL)
    monkeypatch.setattr(published.hf, "try_to_load_from_cache", lambda repository, file: weights if repository == "me/mine" else None)
    monkeypatch.setattr("open_clip.factory._get_hf_config", lambda *_, **__: {"model_cfg": config, "preprocess_cfg": {}})
    monkeypatch.setattr("open_clip.factory.download_pretrained_from_hf", lambda *_, **__: weights)
    segmenter = Segmenter.untrained(*published.parse("hf-hub:me/mine"), device="cpu")
    assert segmenter.clip.dense == "sclip" and segmenter.clip.patch == 32 and segmenter.settings.window == 448
