"""The compact CLIP's pretraining, on models of a few thousand parameters."""

import copy
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from small import info_nce_by_loops, same
from tiny import TINY, P

from ovseg.clip.frozen import FrozenCLIP
from ovseg.data.captions import nouns
from ovseg.world import pretraining, scenes
from ovseg.world.muon import Muon

SMALL = TINY.model_copy(update={"pictures": 16, "patches": [3, 5, 16], "batch": 4, "views": 2, "vision_layers": 1, "workers": 0})


@pytest.fixture(scope="module")
def trained():
    return pretraining.pretrain(SMALL)


def test_contrast_is_the_symmetric_loss_of_plain_loops_without_texts_that_fit():
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(4, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    fits = torch.rand(4, 4, generator=generator) < 0.4
    logits = 5 * torch.cosine_similarity(image[:, None], text, dim=-1)
    assert pretraining.contrast(image, text, 5.0, fits).item() == pytest.approx(info_nce_by_loops(logits, ~fits).item(), rel=1e-6)


def test_a_text_fits_pictures_whose_captions_name_all_that_it_names():
    fits = pretraining.fits([("car", "sky"), ("car",), ("sea",)], [("sky", "car"), ("car",), ("sky",)])
    assert fits.tolist() == [[True, True, True], [False, True, False], [False, False, False]]


def test_rendered_pairs_have_captions_and_prompts_of_their_nouns():
    kinds = set()
    for index in range(3, 23):
        image, texts = pretraining.RenderedPairs(SMALL)[index]
        scene = scenes.render(SMALL, scenes.PRETRAIN, index)
        words = nouns(scene.caption)
        allowed = {scene.caption: words} | {template.format(noun): (noun,) for template in SMALL.templates for noun in words}
        assert np.array_equal(image.permute(1, 2, 0), scene.image) and len(texts) == SMALL.views
        assert all(allowed[text] == named and of_caption == words for text, named, of_caption in texts)
        kinds |= {text == scene.caption for text, _, _ in texts}
    assert kinds == {True, False}


def test_a_glimpse_holds_the_class_token_and_a_few_patches_of_its_picture_in_their_places():
    glimpses = pretraining.Glimpses(views=3)
    glimpses.patches = 4
    tokens = torch.arange(2 * 17 * 5).reshape(2, 17, 5).float()  # pictures, class token and 16 patches, width
    seen, kept = glimpses(tokens), []
    assert seen.shape == (6, 5, 5)
    for n, view in enumerate(seen):
        rows = [next(i for i in range(17) if torch.equal(token, tokens[n // 3, i])) for token in view]
        assert rows[0] == 0 and len(set(rows)) == 5
        kept.append(frozenset(rows))
    assert len(set(kept)) > 1 and glimpses.eval()(tokens) is tokens


def test_hidden_patches_change_nothing_of_a_glimpse():
    model = open_clip.model.CLIP(**pretraining.model_config(SMALL))
    model.visual.patch_dropout = pretraining.Glimpses(views=2)
    model.visual.patch_dropout.patches = 5
    pictures = torch.randn(2, 3, 32, 32, requires_grad=True)
    model.encode_image(pictures).sum().backward()
    touched = F.max_pool2d((pictures.grad != 0).float(), 8).amax(1).sum((1, 2))  # patches, of 16
    assert all(5 <= count <= 10 for count in touched)


def test_the_learning_rate_warms_up_over_a_twentieth_of_the_steps_and_decays_to_zero():
    assert [pretraining.schedule(step, 100) for step in (0, 1, 50)] == pytest.approx([1 / 5, 2 / 5, 1 / 2], rel=2e-3)
    assert pretraining.schedule(99, 100) < 0.002


def test_muon_moves_matrices_along_the_orthogonal_factor_of_their_momentum():
    torch.manual_seed(0)
    matrices = [torch.randn(shape, requires_grad=True) for shape in ((6, 4), (4, 9), (6, 4))]
    before, optimiser = [m.detach().clone() for m in matrices], Muon(matrices, lr=0.1, weight_decay=0.5, momentum=0.9)
    averages = [torch.zeros_like(m) for m in before]
    for _ in range(2):
        for i, m in enumerate(matrices):
            m.grad = torch.randn(m.shape)
            averages[i] = 0.9 * averages[i] + 0.1 * m.grad
        optimiser.step()
        for i, m in enumerate(matrices):
            moved = (0.95 * before[i] - m.detach()) / 0.1 / max(1, m.shape[0] / m.shape[1]) ** 0.5
            u, _, v = torch.linalg.svd(0.1 * m.grad + 0.9 * averages[i], full_matrices=False)
            sizes = u.T @ moved @ v.T  # nearly diagonal, in the singular vectors
            assert (sizes - torch.diag(sizes.diag())).abs().max() < 1e-4 and sizes.diag().min() > 0.6 and sizes.diag().max() < 1.25
            before[i] = m.detach().clone()


def test_training_moves_both_towers_and_ends_bit_identically_if_it_was_killed(trained, tmp_path, monkeypatch):
    torch.manual_seed(SMALL.seed)
    start = open_clip.model.CLIP(**pretraining.model_config(SMALL)).state_dict()
    assert not any(torch.equal(trained[0].state_dict()[name], start[name]) for name in ("visual.proj", "text_projection"))
    file, write = tmp_path / "pretrain.pt", pretraining.write_whole

    def write_and_die(path, save):
        write(path, save)
        if torch.load(path)["step"] == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(pretraining, "write_whole", write_and_die)
    with pytest.raises(KeyboardInterrupt):
        pretraining.pretrain(SMALL, checkpoint=file)
    monkeypatch.undo()
    torch.manual_seed(5)
    model, history = pretraining.pretrain(SMALL.model_copy(update={"workers": 1}), checkpoint=file)
    assert history == trained[1] and [row["pairs"] for row in history] == [8, 16, 24, 32]
    assert same(model.state_dict(), trained[0].state_dict())
    _, history = pretraining.pretrain(SMALL.model_copy(update={"pictures": 8}), checkpoint=file)
    assert [row["pairs"] for row in history] == [8, 16]  # other settings: from the start


def test_folding_removes_the_mean_of_all_patches_and_sets_both_norms(trained):
    clip = FrozenCLIP(copy.deepcopy(trained[0]), open_clip.SimpleTokenizer(context_length=pretraining.CONTEXT))
    rendered = [scenes.render(SMALL, scenes.PRETRAIN, index, offset=2) for index in range(64)]
    pictures = np.stack([scene.image for scene in rendered])
    before = clip.encode_dense(pictures)
    pretraining.fold(clip, SMALL.model_copy(update={"embedding_norm": 3.0}))
    after, centred = clip.encode_dense(pictures), before - before.mean((0, 2, 3), keepdim=True)
    torch.testing.assert_close(after, centred * 3 / centred.norm(dim=1).mean(), rtol=1e-3, atol=1e-4)
    assert clip.encode_text([scene.caption for scene in rendered]).norm(dim=-1).mean().item() == pytest.approx(3.0, rel=1e-4)


def test_saved_folder_opens_with_open_clip_and_holds_float16(trained, tmp_path):
    pretraining.save_clip(trained[0], SMALL, tmp_path)
    with safe_open(tmp_path / "open_clip_model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float16}
    opened = FrozenCLIP.open(P.clip.model_copy(update={"model": f"local-dir:{tmp_path}"}))
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    expected = FrozenCLIP(trained[0], None).encode_dense(pictures)
    assert torch.allclose(opened.encode_dense(pictures), expected, atol=0.02 * expected.abs().max().item())


def test_committed_weights_know_things_and_stuff():
    """Unseen pictures that contain a class are closer to its name than those that do not, in four of five comparisons or more."""
    clip = FrozenCLIP.open(P.clip.model_copy(update={"model": f"local-dir:{Path(__file__).parents[2] / 'models/clip'}"}))
    unseen = [scenes.render(P.pretrain, scenes.PRETRAIN, index, offset=1) for index in range(120)]
    images = F.normalize(clip.clip.encode_image(clip.normalise([scene.image for scene in unseen])), dim=-1)
    for scores, name in zip(clip.embed_classes(scenes.CLASSES, P.pretrain.templates) @ images.T, scenes.CLASSES, strict=True):
        present = torch.tensor([name in scene.present for scene in unseen])
        assert (scores[present][:, None] > scores[~present]).float().mean() > 0.8, name
