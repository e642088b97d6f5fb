"""The compact CLIP's pretraining, on models of a few thousand parameters."""

import math
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors import safe_open

from ovseg import params
from ovseg.clip.frozen import FrozenCLIP
from ovseg.data.captions import nouns
from ovseg.world import pretraining, scenes

PARAMS = params.load(path=Path(__file__).resolve().parents[2] / "params.yaml")
TINY = PARAMS.pretrain.model_copy(
    update={"pairs": 32, "batch": 8, "size": 32, "patch": 8, "embed_dim": 16, "workers": 0}
    | {"vision_width": 64, "vision_layers": 1, "text_width": 64, "text_layers": 1}
)


@pytest.fixture(scope="module")
def trained():
    return pretraining.pretrain(TINY)


def wrap(model):
    return FrozenCLIP(model, open_clip.SimpleTokenizer(context_length=pretraining.CONTEXT))


def test_contrast_is_the_symmetric_loss_of_plain_loops_without_equal_texts():
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    names = ["a", "b", "a", "c"]
    cosine = [[float(torch.cosine_similarity(i, t, dim=0)) for t in text] for i in image]
    total = 0.0
    for n in range(4):
        others = [m for m in range(4) if m == n or names[m] != names[n]]
        total -= math.log(math.exp(5 * cosine[n][n]) / sum(math.exp(5 * cosine[n][m]) for m in others))
        total -= math.log(math.exp(5 * cosine[n][n]) / sum(math.exp(5 * cosine[m][n]) for m in others))
    assert pretraining.contrast(image, text, 5.0, names).item() == pytest.approx(total / 8, rel=1e-6)


def test_rendered_pairs_are_the_worlds_with_their_caption_or_a_prompt_of_one_of_its_nouns():
    pairs = pretraining.RenderedPairs(TINY, 40)
    kinds = set()
    for index in range(len(pairs)):
        image, text = pairs[index]
        scene = scenes.render(TINY.seed, scenes.PRETRAIN, index, 32, 32, TINY.max_things, TINY.omit, TINY.omit_stuff, TINY.invent)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), scene.image)
        prompts = {template.format(noun) for template in TINY.templates for noun in nouns(scene.caption)}
        assert text == scene.caption or text in prompts
        kinds.add(text == scene.caption)
    assert kinds == {True, False}


def test_training_moves_both_towers_and_is_repeatable(trained):
    model, history = trained
    torch.manual_seed(TINY.seed)
    start = open_clip.model.CLIP(**pretraining.model_config(TINY))
    assert not torch.equal(model.visual.proj, start.visual.proj)
    assert not torch.equal(model.text_projection, start.text_projection)
    assert [row["pairs"] for row in history] == [8, 16, 24, 32]
    again, _ = pretraining.pretrain(TINY)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_folding_sets_both_mean_norms_and_keeps_every_cosine(trained):
    clip = wrap(trained[0])
    pictures = np.stack([scenes.render(TINY.seed + 2, scenes.PRETRAIN, i, 32, 32).image for i in range(64)])
    captions = [scenes.render(TINY.seed + 2, scenes.PRETRAIN, i, 32, 32).caption for i in range(64)]
    before = torch.nn.functional.normalize(clip.encode_dense(pictures), dim=1)
    pretraining.fold_norms(clip, TINY.model_copy(update={"embedding_norm": 3.0}))
    after = clip.encode_dense(pictures)
    assert after.norm(dim=1).mean().item() == pytest.approx(3.0, rel=1e-4)
    assert clip.encode_text(captions).norm(dim=-1).mean().item() == pytest.approx(3.0, rel=1e-4)
    assert torch.allclose(before, torch.nn.functional.normalize(after, dim=1), atol=1e-5)


def test_saved_folder_opens_with_open_clip_and_holds_float16(trained, tmp_path):
    pretraining.save(trained[0], TINY, tmp_path)
    with safe_open(tmp_path / "open_clip_model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}
    settings = PARAMS.clip.model_copy(update={"model": f"local-dir:{tmp_path}", "precision": "float32"})
    opened = FrozenCLIP.open(settings)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    expected = wrap(trained[0]).encode_dense(pictures)
    assert torch.allclose(opened.encode_dense(pictures), expected, atol=0.02 * expected.abs().max().item())


def test_zero_shot_precision_of_every_class_is_a_share(trained):
    found = pretraining.zero_shot(wrap(trained[0]), TINY, pictures=100)
    assert tuple(found) == scenes.CLASSES and all(0 <= value <= 1 for value in found.values())


def test_committed_weights_know_things_and_stuff():
    root = Path(__file__).resolve().parents[2]
    settings = PARAMS.clip.model_copy(update={"model": f"local-dir:{root / 'models/clip'}"})
    found = pretraining.zero_shot(FrozenCLIP.open(settings), PARAMS.pretrain, pictures=120)
    assert np.mean([found[name] for name in scenes.THINGS]) > 0.8
    assert np.mean([found[name] for name in scenes.STUFF]) > 0.8
