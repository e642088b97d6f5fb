"""The compact CLIP's pretraining, on models of a few thousand parameters."""

import copy
import math
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors import safe_open
from tiny import P

from ovseg.clip.frozen import FrozenCLIP
from ovseg.data.captions import nouns
from ovseg.schema import Phase
from ovseg.world import pretraining, scenes

TINY = P.pretrain.model_copy(
    update={"phases": [Phase(pictures=8, patches=[16]), Phase(pictures=8, patches=[3, 5])], "batch": 4, "views": 2}
    | {"size": 32, "patch": 8, "embed_dim": 16, "workers": 0}
    | {"vision_width": 64, "vision_layers": 1, "text_width": 64, "text_layers": 1}
)


@pytest.fixture(scope="module")
def trained():
    return pretraining.pretrain(TINY)


def wrap(model):
    return FrozenCLIP(model, open_clip.SimpleTokenizer(context_length=pretraining.CONTEXT))


def test_contrast_is_the_symmetric_loss_of_plain_loops_without_texts_that_fit():
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    fits = torch.rand(4, 4, generator=generator) < 0.4
    cosine = [[float(torch.cosine_similarity(i, t, dim=0)) for t in text] for i in image]
    total = 0.0
    for n in range(4):
        own = math.exp(5 * cosine[n][n])
        total -= math.log(own / (own + sum(math.exp(5 * cosine[n][m]) for m in range(4) if m != n and not fits[n, m])))
        total -= math.log(own / (own + sum(math.exp(5 * cosine[m][n]) for m in range(4) if m != n and not fits[m, n])))
    assert pretraining.contrast(image, text, 5.0, fits).item() == pytest.approx(total / 8, rel=1e-6)


def test_a_text_fits_pictures_whose_captions_name_all_that_it_names():
    captions = [("car", "sky"), ("car",), ("sea",)]
    texts = [("sky", "car"), ("car",), ("sky",)]
    assert pretraining.fits(captions, texts).tolist() == [[True, True, True], [False, True, False], [False, False, False]]


def test_rendered_pairs_have_captions_and_prompts_of_their_nouns():
    kinds = set()
    for index, (image, words, texts) in enumerate(pretraining.RenderedPairs(TINY, 20, first=3), 3):
        scene = scenes.render(TINY.seed, scenes.PRETRAIN, index, 32, 32, TINY.max_things, TINY.omit, TINY.omit_stuff, TINY.invent)
        assert np.array_equal(image.permute(1, 2, 0), scene.image) and words == nouns(scene.caption) and len(texts) == TINY.views
        allowed = {scene.caption: words} | {template.format(noun): (noun,) for template in TINY.templates for noun in words}
        assert all(allowed[text] == named for text, named in texts)
        kinds |= {text == scene.caption for text, _ in texts}
    assert kinds == {True, False} and index == 22


def test_a_glimpse_holds_the_class_token_and_a_few_patches_of_its_picture_in_their_places():
    glimpses = pretraining.Glimpses(views=3)
    glimpses.patches = 4
    tokens = torch.arange(2 * 17 * 5).reshape(2, 17, 5).float()  # pictures, class token and 16 patches, width
    torch.manual_seed(0)
    seen = glimpses(tokens)
    assert seen.shape == (6, 5, 5)
    kept = []
    for n, view in enumerate(seen):
        picture = tokens[n // 3]
        assert torch.equal(view[0], picture[0])
        rows = [next(i for i in range(1, 17) if torch.equal(token, picture[i])) for token in view[1:]]
        assert len(set(rows)) == 4
        kept.append(frozenset(rows))
    assert len(set(kept)) == 6  # each view has its own
    assert glimpses.eval()(tokens) is tokens


def test_hidden_patches_change_nothing_of_a_glimpse():
    model = open_clip.model.CLIP(**pretraining.model_config(TINY))
    model.visual.patch_dropout = pretraining.Glimpses(views=2)
    model.visual.patch_dropout.patches = 5
    pictures = torch.randn(2, 3, 32, 32, requires_grad=True)
    model.encode_image(pictures).sum().backward()
    touched = (pictures.grad != 0).any(1).unflatten(1, (4, 8)).unflatten(3, (4, 8)).any(4).any(2).flatten(1).sum(1)
    assert all(5 <= count <= 10 for count in touched)  # of 16


def test_training_moves_both_towers_and_is_repeatable(trained):
    model, history = trained
    torch.manual_seed(TINY.seed)
    start = open_clip.model.CLIP(**pretraining.model_config(TINY))
    assert not torch.equal(model.visual.proj, start.visual.proj)
    assert not torch.equal(model.text_projection, start.text_projection)
    assert [row["pairs"] for row in history] == [8, 16, 24, 32]
    again, _ = pretraining.pretrain(TINY)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_each_phase_has_its_own_warm_up_decay_and_patches():
    phases = [Phase(pictures=400, patches=[16]), Phase(pictures=160, patches=[3, 5])]
    plan = list(pretraining.schedule(TINY.model_copy(update={"phases": phases, "lr": 1.0})))
    assert [seen for _, seen in plan] == [[16]] * 100 + [[3, 5]] * 40
    rates = [rate for rate, _ in plan]
    assert rates[0] == pytest.approx(1 / 5) and rates[100] == pytest.approx(1 / 2)  # 5% of the steps warm up
    for first, steps in ((0, 100), (100, 40)):
        assert rates[first + steps // 2] == pytest.approx(0.5) and rates[first + steps - 1] < 0.002


def test_a_training_that_was_killed_ends_bit_identically(trained, tmp_path, monkeypatch):
    file = tmp_path / "pretrain.pt"

    def killed(*args):
        keep(*args)
        if args[4] == 2:  # steps
            raise KeyboardInterrupt

    keep = pretraining.keep
    monkeypatch.setattr(pretraining, "keep", killed)
    with pytest.raises(KeyboardInterrupt):
        pretraining.pretrain(TINY, checkpoint=file)
    monkeypatch.setattr(pretraining, "keep", keep)
    torch.manual_seed(5)
    model, history = pretraining.pretrain(TINY, checkpoint=file)
    assert history == trained[1]
    assert all(torch.equal(a, b) for a, b in zip(trained[0].state_dict().values(), model.state_dict().values(), strict=True))
    _, history = pretraining.pretrain(TINY.model_copy(update={"phases": TINY.phases[:1]}), checkpoint=file)  # from the start
    assert [row["pairs"] for row in history] == [8, 16]


def test_folding_removes_the_mean_of_all_patches_and_sets_both_norms(trained):
    clip = wrap(copy.deepcopy(trained[0]))
    rendered = [scenes.render(TINY.seed + 2, scenes.PRETRAIN, i, 32, 32) for i in range(64)]
    pictures, captions = np.stack([scene.image for scene in rendered]), [scene.caption for scene in rendered]
    before = clip.encode_dense(pictures)
    pretraining.fold_mean(clip, TINY)
    folded = clip.encode_dense(pictures)
    torch.testing.assert_close(folded, before - before.mean((0, 2, 3), keepdim=True), rtol=0, atol=1e-4)
    pretraining.fold_norms(clip, TINY.model_copy(update={"embedding_norm": 3.0}))
    scaled = clip.encode_dense(pictures)
    assert scaled.norm(dim=1).mean().item() == pytest.approx(3.0, rel=1e-4)
    assert clip.encode_text(captions).norm(dim=-1).mean().item() == pytest.approx(3.0, rel=1e-4)
    torch.testing.assert_close(*(torch.nn.functional.normalize(features, dim=1) for features in (folded, scaled)), rtol=0, atol=1e-5)


def test_saved_folder_opens_with_open_clip_and_holds_float16(trained, tmp_path):
    pretraining.save_clip(trained[0], TINY, tmp_path)
    with safe_open(tmp_path / "open_clip_model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}
    settings = P.clip.model_copy(update={"model": f"local-dir:{tmp_path}", "precision": "float32"})
    opened = FrozenCLIP.open(settings)
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    expected = wrap(trained[0]).encode_dense(pictures)
    assert torch.allclose(opened.encode_dense(pictures), expected, atol=0.02 * expected.abs().max().item())


def test_dense_miou_is_of_the_class_nearest_to_each_patch(trained, monkeypatch):
    clip = wrap(trained[0])
    found = pretraining.dense_miou(clip, TINY, 64, pictures=3)
    assert tuple(found) == scenes.CLASSES
    drawn = [scenes.render(TINY.seed, scenes.CALIBRATION, i, 32, 32, TINY.max_things) for i in range(3)]
    assert all(found[scenes.CLASSES[i]] is not None for scene in drawn for i in np.unique(scene.labels))
    classes = torch.eye(len(scenes.CLASSES))
    monkeypatch.setattr(clip, "embed_classes", lambda *_: classes)
    labels = iter([scene.labels for scene in drawn])  # patches of one pixel that know the truth
    monkeypatch.setattr(clip, "encode_dense", lambda *_: classes[torch.from_numpy(next(labels)).long()].permute(2, 0, 1)[None])
    assert {value for value in pretraining.dense_miou(clip, TINY, 32, pictures=3).values()} <= {100.0, None}


def test_committed_weights_know_things_and_stuff():
    root = Path(__file__).resolve().parents[2]
    settings = P.clip.model_copy(update={"model": f"local-dir:{root / 'models/clip'}"})
    found = pretraining.zero_shot(FrozenCLIP.open(settings), P.pretrain, pictures=120)
    assert np.mean([found[name] for name in scenes.THINGS]) > 0.8
    assert np.mean([found[name] for name in scenes.STUFF]) > 0.8
