"""Nouns of captions, and the bank of texts: what it holds, draws and keeps on disk."""

from collections import Counter

import numpy as np
import pytest
from tiny import bank_of

from ovseg.data.captions import TextBank, nouns

TEMPLATES = ["a photo of a {}.", "art of the {}.", "many {}."]
CAPTIONS = ["a dog and a cat on the sofa.", "running quickly", "a cat.", "a dog and a cat on the sofa.", "the boat, the sea and the sky"]
NOUNS = [("dog", "cat", "sofa"), (), ("cat",), ("dog", "cat", "sofa"), ("boat", "sea", "sky")]  # of CAPTIONS, by hand
BANK = bank_of(CAPTIONS, TEMPLATES)


def test_nouns_are_the_distinct_nouns_in_order():
    assert nouns("A dog and a cat on the sofa.") == ("dog", "cat", "sofa")
    assert nouns("Two dogs run through the park at night") == ("dogs", "park", "night")
    assert nouns("a dog, a Dog and a DOG") == ("dog",) and nouns("the 3 birds of 2019!") == ("birds",)
    assert nouns('"quoted" words , and (bracketed) ones ... e.g. U.S. cities') == ("words", "ones", "cities")
    assert nouns("person 's well-known T-shirt : 50 % off in 2012 :-)") == ("person",) and nouns("A Café – 日本") == ("café",)
    assert nouns("<PERSON> and &lt;PERSON&gt;'s car") == ("person", "car") and bank_of(["<PERSON>!"], TEMPLATES).captions == ["person!"]
    assert nouns("salt &amp; pepper&nbsp;") == ("salt", "pepper") and bank_of(["a &amp;&nbsp; b"], TEMPLATES).captions == ["a & b"]
    assert {nouns(caption) for caption in ("x", "running quickly", "", "!?! ...")} == {()}
    assert {nouns(caption) for caption in ("一只猫在沙发上", "猫 が 寝ている", "кот на диване")} == {()}  # the tagger knows English


def test_texts_are_the_distinct_captions_then_the_prompts_of_each_noun():
    distinct = list(dict.fromkeys(word for words in NOUNS for word in words))
    assert BANK.texts == [*dict.fromkeys(CAPTIONS), *(template.format(noun) for noun in distinct for template in TEMPLATES)]
    assert len(BANK) == len(CAPTIONS)


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_a_pair_draws_its_caption_or_uniformly_a_prompt_of_its_nouns(probability):
    draws, pairs = 6000, len(CAPTIONS)
    drawn = BANK.draw(np.tile(np.arange(pairs), draws), np.random.default_rng(0), probability)
    assert drawn.shape == (draws * pairs,) and drawn.dtype == np.int64
    for pair, words in enumerate(NOUNS):
        prompts = [template.format(noun) for noun in words for template in TEMPLATES]
        shares = {CAPTIONS[pair]: probability if words else 1} | {prompt: (1 - probability) / len(prompts) for prompt in prompts}
        counts = Counter(BANK.texts[i] for i in drawn[pair::pairs])
        assert counts.keys() <= shares.keys()
        for text, share in shares.items():  # five standard deviations
            assert counts[text] == pytest.approx(draws * share, abs=5 * (draws * share * (1 - share)) ** 0.5)


def test_captions_are_drawn_where_there_is_no_noun():
    without = bank_of(["running quickly", "!?!", "running quickly"], TEMPLATES)
    last = bank_of(["a cat.", "running quickly"], TEMPLATES)  # the last pair's nouns would begin past the end of the array
    for bank, rows, texts in ((without, [0, 1, 2], [0, 1, 0]), (last, [1, 1], [1, 1])):
        assert bank.draw(np.array(rows), np.random.default_rng(0), 0).tolist() == texts


def test_a_saved_bank_loads_as_it_was_without_breaks_of_lines(tmp_path):
    marks = "\n \r \v \f \x1c \x1d \x1e \x85 \u2028 \u2029 \r\n".split(" ")
    bank = bank_of([*(f"{n}{mark}{mark} cats{mark}" for n, mark in enumerate(marks)), *CAPTIONS, "a naïve café – 日本"], TEMPLATES)
    bank.save(tmp_path / "new")
    loaded = TextBank.load(tmp_path / "new")
    assert loaded.captions[: len(marks)] == [f"{n} cats" for n in range(len(marks))]
    assert (loaded.captions, loaded.nouns, loaded.templates) == (bank.captions, bank.nouns, TEMPLATES)
    for name in ("caption_index", "noun_index", "offset"):
        assert np.array_equal(getattr(loaded, name), getattr(bank, name)) and getattr(loaded, name).dtype == getattr(bank, name).dtype


def test_subjects_are_equal_for_prompts_of_one_noun_and_for_equal_captions():
    subjects = dict(zip(BANK.texts, BANK.subjects(np.arange(len(BANK.texts))), strict=True))
    groups = [{caption} for caption in CAPTIONS] + [{t.format(noun) for t in TEMPLATES} for words in NOUNS for noun in words]
    for one in groups:
        for other in groups:
            same = {subjects[text] for text in one} == {subjects[text] for text in other}
            assert len({subjects[text] for text in one}) == 1 and same == (one == other)
