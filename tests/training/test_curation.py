"""Curated texts: neighbours, ranking and draws against plain references; what is opened for a training."""

from collections import Counter

import numpy as np
import pytest
from small import CPU, WIDTH, changed, write_array, write_project

from ovseg.data.captions import TextBank
from ovseg.training import batches, curation

N, V, D = 30, 12, 5
TEMPLATES = ["a {}.", "many {}."]
RNG = np.random.default_rng(0)
NOUNS = [RNG.permutation(V)[: RNG.integers(0, 4)].tolist() for _ in range(N)]  # some captions have none
BANK = TextBank.collect(((f"caption {n}", [f"noun{v}" for v in words]) for n, words in enumerate(NOUNS)), TEMPLATES)
IMAGES, TEXTS = RNG.normal(size=(N, D)), RNG.normal(size=(len(BANK.texts), D))


def settings(neighbours=4, concepts=3, clusters=3):
    return changed().cocu.model_copy(update={"neighbours": neighbours, "concepts": concepts, "clusters": clusters})


def nouns_of(bank, pair):
    return bank.noun_index[bank.offset[pair] : bank.offset[pair + 1]].tolist()


def unit(vector):
    return vector / np.linalg.norm(vector)


def by_loops(pair, neighbours, concepts):
    """The nouns of a pair, a step after another."""
    cosines = {other: unit(IMAGES[pair]) @ unit(IMAGES[other]) for other in range(N) if other != pair}
    nearest = sorted(cosines, key=cosines.get, reverse=True)[:neighbours]
    own, scores = nouns_of(BANK, pair), {}
    for noun in {noun for other in nearest for noun in nouns_of(BANK, other)} - set(own):
        first = len(BANK.captions) + noun * len(TEMPLATES)
        text = unit(sum(unit(TEXTS[first + k]) for k in range(len(TEMPLATES))))
        scores[noun] = unit(IMAGES[pair]) @ text - np.mean([unit(image) @ text for image in IMAGES])
    return own + sorted(scores, key=scores.get, reverse=True)[: max(0, concepts - len(own))]


@pytest.mark.parametrize("neighbours, concepts", [(4, 3), (1, 5), (2, 1), (100, 100)])
@pytest.mark.parametrize("entries", [1, 7 * N, 1 << 20])  # blocks of 1, 7 and all pictures
def test_a_picture_gets_the_best_nouns_of_its_neighbours(monkeypatch, neighbours, concepts, entries):
    monkeypatch.setattr(curation, "ENTRIES", entries)
    bank = curation.curate(BANK, TEXTS, IMAGES, settings(neighbours, concepts, clusters=1))  # one cluster repeats nothing
    expected = [by_loops(pair, neighbours, concepts) for pair in range(N)]
    assert [nouns_of(bank, pair) for pair in range(N)] == expected
    assert bank.texts == BANK.texts and np.array_equal(bank.caption_index, BANK.caption_index)
    of_pairs = np.array([[noun in words for noun in range(len(BANK.nouns))] for words in expected])
    assert np.array_equal(curation.named(bank).toarray(), of_pairs)


def test_a_prompt_is_of_a_random_cluster_and_then_of_a_random_noun_in_it():
    clumps = [0, 0, 0, 1, 1, 2]  # of six nouns, by their texts
    bank = TextBank.collect([("caption", "abcdef"), ("other", "")], TEMPLATES)
    texts = np.eye(3)[[0, 0, *np.repeat(clumps, len(TEMPLATES))]] + 0.01 * RNG.normal(size=(14, 3))
    curated = curation.curate(bank, texts, RNG.normal(size=(2, 3)), settings(clusters=3))
    draws = 20_000
    drawn = Counter(curated.subjects(curated.draw(np.zeros(draws, int), np.random.default_rng(0), 0.0)) - len(bank.captions))
    for noun, clump in enumerate(clumps):
        share = 1 / 3 / clumps.count(clump)
        assert drawn[noun] == pytest.approx(draws * share, abs=5 * (draws * share * (1 - share)) ** 0.5)


def test_captions_without_nouns_and_pairs_without_neighbours_stay_as_they_are():
    bank = TextBank.collect([("running", ()), ("quickly", ())], TEMPLATES)
    assert curation.curate(bank, TEXTS[:2], IMAGES[:2], settings()) is bank
    alone = TextBank.collect([("a cat", ["cat"])], TEMPLATES)
    assert nouns_of(curation.curate(alone, TEXTS[:3], IMAGES[:1], settings(clusters=9)), 0) == [0]


def test_precision_and_recall_by_hand():
    chosen, true = np.array([[True, True, False, True]]), np.array([[True, False, False, True]])
    assert curation.precision_and_recall(chosen, true) == (pytest.approx(200 / 3), 100)
    assert curation.precision_and_recall(true, chosen) == (100, pytest.approx(200 / 3))


def test_a_training_opens_captions_or_curated_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_project()
    stored, curated = TextBank.load("data/prepared"), changed(texts="curated")
    plain = batches.open_pairs(changed(texts="captions"), CPU)
    rows, rng = np.arange(len(stored)), np.random.default_rng
    assert np.array_equal(plain.bank.draw(rows, rng(3), 0.5), stored.draw(rows, rng(3), 0.5))
    with pytest.raises(FileNotFoundError, match="^train.texts = curated: data/features/train/images.npy is missing"):
        batches.open_pairs(curated, CPU)
    write_array("data/features/train/images.npy", RNG.normal(size=(len(stored), WIDTH)).astype(np.float16))
    pairs = batches.open_pairs(curated, CPU)
    own, after = (curation.named(bank).toarray() for bank in (stored, pairs.bank))
    assert (own <= after).all() and (after.sum(1) == np.maximum(own.sum(1), curated.cocu.concepts)).any()
    drawn, before = (bank.draw(rows, rng(3), 0.5) for bank in (pairs.bank, stored))
    of_captions = drawn < len(stored.captions)
    assert of_captions.any() and np.array_equal(drawn[of_captions], before[of_captions]) and not np.array_equal(drawn, before)
