from collections import Counter

import numpy as np
import pytest
from tiny import bank_of

from ovseg.data.captions import TextBank, nouns

TEMPLATES = ["a photo of a {}.", "art of the {}.", "many {}."]
CAPTIONS = ["a dog and a cat on the sofa.", "running quickly", "a cat.", "a dog and a cat on the sofa.", "the boat, the sea and the sky"]
NOUNS = [("dog", "cat", "sofa"), (), ("cat",), ("dog", "cat", "sofa"), ("boat", "sea", "sky")]  # of CAPTIONS, by hand


@pytest.fixture
def bank():
    return bank_of(CAPTIONS, TEMPLATES)


def texts_of(pair):
    """The caption of a pair of CAPTIONS, and the prompts of its nouns."""
    return CAPTIONS[pair], {template.format(noun) for noun in NOUNS[pair] for template in TEMPLATES}


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("A dog and a cat on the sofa.", ("dog", "cat", "sofa")),
        ("Two dogs run through the park at night", ("dogs", "park", "night")),
        ("the colour of the sea", ("colour", "sea")),
        ("a dog, a Dog and a DOG", ("dog",)),
        ("the 3 birds of 2019!", ("birds",)),
        ("x", ()),
        ("running quickly", ()),
        ("", ()),
        ("!?! ...", ()),
    ],
)
def test_nouns_are_the_distinct_nouns_in_order(caption, expected):
    assert nouns(caption) == expected


def test_each_distinct_text_is_in_the_bank_once(bank):
    found = {word for words in NOUNS for word in words}
    expected = set(CAPTIONS) | {template.format(noun) for noun in found for template in TEMPLATES}
    assert len(bank) == len(CAPTIONS)
    assert len(bank.texts) == len(set(bank.texts)) == len(expected)
    assert set(bank.texts) == expected


def test_a_drawn_text_belongs_to_its_pair(bank):
    rows = np.tile(np.arange(len(CAPTIONS)), 200)
    drawn = bank.draw(rows, np.random.default_rng(0), 0.5)
    assert drawn.shape == rows.shape and drawn.dtype == np.int64
    for row, text in zip(rows, (bank.texts[i] for i in drawn), strict=True):
        caption, prompts = texts_of(row)
        assert text == caption or text in prompts


def test_caption_probability_of_one_draws_captions_only(bank):
    rows = np.array([4, 0, 1, 2, 3, 3])
    drawn = bank.draw(rows, np.random.default_rng(0), 1.0)
    assert [bank.texts[i] for i in drawn] == [CAPTIONS[row] for row in rows]


def test_caption_probability_of_zero_draws_prompts_unless_there_is_no_noun(bank):
    rows = np.tile(np.arange(len(CAPTIONS)), 50)
    for row, i in zip(rows, bank.draw(rows, np.random.default_rng(0), 0.0), strict=True):
        caption, prompts = texts_of(row)
        assert bank.texts[i] in prompts if prompts else bank.texts[i] == caption


def test_texts_of_a_pair_are_drawn_uniformly(bank):
    draws = 18_000
    drawn = bank.draw(np.zeros(draws, np.int64), np.random.default_rng(0), 0.25)
    counts = Counter(bank.texts[i] for i in drawn)
    caption, prompts = texts_of(0)
    assert set(counts) == {caption} | prompts
    assert counts[caption] == pytest.approx(draws / 4, abs=5 * (draws * 0.25 * 0.75) ** 0.5)
    share = 0.75 / len(prompts)
    for prompt in prompts:  # five standard deviations
        assert counts[prompt] == pytest.approx(draws * share, abs=5 * (draws * share * (1 - share)) ** 0.5)


def test_draws_follow_the_generator(bank):
    rows = np.tile(np.arange(len(CAPTIONS)), 20)
    first, again, other = (bank.draw(rows, np.random.default_rng(seed), 0.5) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_bank_without_any_noun_draws_captions():
    bank = bank_of(["running quickly", "!?!", "running quickly"], TEMPLATES)
    assert list(bank.texts) == ["running quickly", "!?!"]
    drawn = bank.draw(np.array([0, 1, 2, 1]), np.random.default_rng(0), 0.0)
    assert drawn.tolist() == [0, 1, 0, 1]


def test_the_last_pair_may_have_no_noun():
    bank = bank_of(["a cat.", "running quickly"], TEMPLATES)  # its nouns would begin past the end of the array
    drawn = bank.draw(np.array([1, 0, 1]), np.random.default_rng(0), 0.0)
    assert [bank.texts[i] for i in drawn][::2] == ["running quickly"] * 2


def test_a_saved_bank_loads_as_it_was(tmp_path):
    bank = bank_of([*CAPTIONS, "a naïve café – 日本"], TEMPLATES)
    bank.save(tmp_path / "made" / "here")
    loaded = TextBank.load(tmp_path / "made" / "here")
    assert list(loaded.texts) == list(bank.texts) and len(loaded) == len(bank)
    rows = np.arange(len(bank))
    assert np.array_equal(*(b.draw(rows, np.random.default_rng(3), 0.5) for b in (bank, loaded)))


def test_a_loaded_bank_draws_without_its_strings(bank, tmp_path):
    bank.save(tmp_path)
    loaded = TextBank.load(tmp_path)
    (tmp_path / "captions.txt").unlink()
    (tmp_path / "nouns.txt").unlink()
    rows = np.tile(np.arange(len(bank)), 9)
    drawn = loaded.draw(rows, np.random.default_rng(3), 0.5)
    assert np.array_equal(drawn, bank.draw(rows, np.random.default_rng(3), 0.5)) and drawn.dtype == np.int64
    assert np.array_equal(loaded.subjects(drawn), bank.subjects(drawn)) and len(loaded.texts) == len(bank.texts)
    with pytest.raises(FileNotFoundError):
        loaded.texts[0]


def test_texts_are_the_captions_then_the_prompts_of_each_noun(bank, tmp_path):
    bank.save(tmp_path)
    nouns = list(dict.fromkeys(word for words in NOUNS for word in words))
    expected = list(dict.fromkeys(CAPTIONS)) + [template.format(noun) for noun in nouns for template in TEMPLATES]
    for texts in (bank.texts, TextBank.load(tmp_path).texts):
        assert [text for start in range(0, len(texts), 4) for text in texts[start : start + 4]] == expected
        assert [texts[i] for i in np.arange(len(expected))] == expected and texts[-1] == expected[-1]
        with pytest.raises(IndexError):
            texts[len(expected)]


@pytest.mark.parametrize("mark", "\n \r \v \f \x1c \x1d \x1e \x85 \u2028 \u2029 \r\n".split(" "))
def test_a_caption_is_one_line_whatever_breaks_it(tmp_path, mark):
    bank_of([f"a cat{mark}{mark} on{mark}", "a dog"], TEMPLATES).save(tmp_path)
    loaded = TextBank.load(tmp_path)
    assert list(loaded.captions) == ["a cat on", "a dog"] and list(loaded.nouns) == ["cat", "dog"]
    assert (tmp_path / "captions.txt").read_text().splitlines() == ["a cat on", "a dog"]


def test_the_summary_by_hand(bank):
    assert bank.summary() == {
        "captions": 4,
        "duplicates": 1,
        "nouns": 6,
        "texts": 4 + 6 * 3,
        "words_5%": 2.0,  # of 2, 2, 7, 8, 8: the lowest fifth lies between the two 2s
        "words_median": 7.0,
        "words_95%": 8.0,
        "nouns_per_caption": 2.0,
        "without_nouns": 0.2,
    }


def test_prompts_of_one_noun_have_one_subject_and_captions_their_own():
    bank = bank_of(["a cat on a mat.", "a dog."], ["a photo of a {}.", "a {}."])
    spoken = dict(zip(bank.texts, bank.subjects(np.arange(len(bank.texts))), strict=True))
    assert spoken["a photo of a cat."] == spoken["a cat."] != spoken["a dog."]
    assert len({spoken["a cat on a mat."], spoken["a photo of a mat."], spoken["a cat."], spoken["a photo of a dog."]}) == 4
