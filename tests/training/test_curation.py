"""Curated texts: nouns, draws and negatives against plain references, and what is opened for a training."""

from collections import Counter

import numpy as np
import pytest
import torch
from small import CPU, WIDTH, changed, write_array, write_project

from ovseg.data.captions import TextBank
from ovseg.training import batches, curation
from ovseg.training.objectives import negatives, negatives_of

N, D, TEMPLATES, RNG = 30, 5, ["a {}.", "many {}."], np.random.default_rng(0)
NOUNS = [[f"noun{word}" for word in RNG.permutation(12)[: RNG.integers(0, 4)]] for _ in range(N)]  # some captions have none
BANK = TextBank.collect(((f"caption {n}", words) for n, words in enumerate(NOUNS)), TEMPLATES)
IMAGES, TEXTS = RNG.normal(size=(N, D)), RNG.normal(size=(len(BANK.texts), D))


def settings(neighbours=4, concepts=3, clusters=3):
    return changed().cocu.model_copy(update={"neighbours": neighbours, "concepts": concepts, "clusters": clusters})


def nouns_of(bank, pair):
    return [bank.nouns[at] for at in bank.noun_index[bank.offset[pair] : bank.offset[pair + 1]]]


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


def by_loops(pair, neighbours, concepts):
    nearest = sorted(set(range(N)) - {pair}, key=lambda other: -cosine(IMAGES[pair], IMAGES[other]))[:neighbours]
    scores = {}
    for noun in {noun for other in nearest for noun in NOUNS[other]} - set(NOUNS[pair]):
        prompts = [TEXTS[BANK.texts.index(template.format(noun))] for template in TEMPLATES]
        text = sum(prompt / np.linalg.norm(prompt) for prompt in prompts)
        scores[noun] = cosine(IMAGES[pair], text) - np.mean([cosine(image, text) for image in IMAGES])
    return NOUNS[pair] + sorted(scores, key=scores.get, reverse=True)[: max(0, concepts - len(NOUNS[pair]))]


@pytest.mark.parametrize("neighbours, concepts, entries", [(4, 3, 1), (1, 5, 7 * N), (2, 1, 1 << 20), (100, 100, 7 * N)])
def test_a_picture_keeps_its_nouns_and_gets_the_best_of_its_neighbours(monkeypatch, neighbours, concepts, entries):
    monkeypatch.setattr(curation, "ENTRIES", entries)  # blocks of 1, 7 and all pictures
    bank = curation.curate(BANK, TEXTS, IMAGES, settings(neighbours, concepts, clusters=1))  # one cluster repeats nothing
    assert [nouns_of(bank, pair) for pair in range(N)] == [by_loops(pair, neighbours, concepts) for pair in range(N)]
    assert bank.texts == BANK.texts and np.array_equal(bank.caption_index, BANK.caption_index)


def test_a_prompt_is_of_a_random_cluster_and_then_of_a_random_noun_in_it():
    clumps, draws = [0, 0, 0, 1, 1, 2], 20_000  # of six nouns, by their texts
    bank = TextBank.collect([("caption", "abcdef"), ("other", "")], TEMPLATES)
    texts = np.eye(3)[[0, 0, *np.repeat(clumps, len(TEMPLATES))]] + 0.01 * RNG.normal(size=(14, 3))
    curated = curation.curate(bank, texts, RNG.normal(size=(2, 3)), settings())
    drawn = Counter(curated.subjects(curated.draw(np.zeros(draws, int), np.random.default_rng(0), 0.0)) - len(bank.captions))
    for noun, clump in enumerate(clumps):
        share = 1 / 3 / clumps.count(clump)
        assert drawn[noun] == pytest.approx(draws * share, abs=5 * (draws * share * (1 - share)) ** 0.5)


def test_captions_without_nouns_and_a_single_pair_stay_as_they_are():
    for words in ((), ["cat"]):
        bank = TextBank.collect([("a cat", words)], TEMPLATES)
        assert nouns_of(curation.curate(bank, TEXTS[: len(bank.texts)], IMAGES[:1], settings()), 0) == list(words)
        assert not bank.describes(np.array([0]), np.array([0])).any()


@pytest.mark.parametrize("equal", [False, True])
def test_with_mask_named_a_prompt_is_no_negative_of_pictures_that_have_its_noun(equal):
    rows = RNG.permutation(N)[:20]
    drawn = BANK.draw(rows, np.random.default_rng(1), 0.3)
    before = negatives(torch.from_numpy(BANK.subjects(drawn)), equal)
    off, on = (negatives_of(BANK, rows, drawn, changed(mask_named=mask, mask_equal_texts=equal).train) for mask in (False, True))
    prompts = [[template.format(noun) for noun in NOUNS[row] for template in TEMPLATES] for row in rows]
    expected = [[bool(before[i, j]) and BANK.texts[drawn[j]] not in prompts[i] for j in range(20)] for i in range(20)]
    assert torch.equal(off, before) and on.tolist() == expected and on.sum() < before.sum()


def test_precision_and_recall_by_hand():
    own, curated, true = np.array([[[1, 0, 1, 0, 0]], [[1, 1, 1, 1, 0]], [[1, 1, 0, 0, 1]]], bool)
    expected = {"captions": [2, 50, pytest.approx(100 / 3)], "added": [2, 50, 50], "curated": [4, 50, pytest.approx(200 / 3)]}
    assert curation.judge(own, curated, true) == expected


def test_a_training_opens_captions_or_curated_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_project()
    p, stored = changed(texts="curated"), TextBank.load("data/prepared")
    with pytest.raises(FileNotFoundError, match="^train.texts = curated: data/features/train/images.npy is missing"):
        batches.open_pairs(p, CPU)
    write_array("data/features/train/images.npy", RNG.normal(size=(len(stored), WIDTH)))
    banks = [stored, *(batches.open_pairs(each, CPU).bank for each in (changed(texts="captions"), p))]
    before, plain, after = (bank.draw(np.arange(len(stored)), np.random.default_rng(3), 0.5) for bank in banks)
    captions = (before < len(stored.captions)) & (np.diff(stored.offset) > 0)  # pairs without nouns may get some
    assert np.array_equal(plain, before) and captions.any() and np.array_equal(after[captions], before[captions])
    assert (before != after).any()
