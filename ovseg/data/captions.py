"""Texts: the nouns of captions, prompts built from them, and a bank of distinct texts.

An image is paired with its caption or with a prompt built from one of the caption's nouns (MGCA §4.1). The bank
stores each distinct text once, so the frozen text encoder encodes it only once, however often training draws it.
"""

import functools
import json
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@functools.lru_cache(maxsize=1 << 16)
def nouns(caption):
    """Distinct nouns of a caption, lower case, in order of appearance.

    Uses TextBlob's default tagger, whose lexicon ships with the package. Single letters are ignored.
    """
    from textblob.en import tag  # takes a second to import, and only `prepare` looks for nouns

    words = (word.lower() for word, kind in tag(caption) if kind.startswith("NN"))
    return tuple(dict.fromkeys(word for word in words if len(word) > 1 and word.isalpha()))


class Lines(Sequence):
    """The `count` lines of a text file. The file is read on first access."""

    def __init__(self, path, count):
        self.path, self.count = path, count

    @functools.cached_property
    def _lines(self):
        return self.path.read_text().split("\n")[:-1]  # every line ends with "\n", including the last

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self._lines[index]


class Texts(Sequence):
    """All distinct texts of a bank, indexed by text id: captions first, then the prompts of each noun, formatted on access."""

    def __init__(self, bank):
        self.bank = bank

    def __len__(self):
        return len(self.bank.captions) + len(self.bank.nouns) * len(self.bank.templates)

    def __getitem__(self, index):
        """The text with an id, or a list of texts for a slice."""
        ids = range(len(self))[index]
        if isinstance(ids, range):
            return [self[i] for i in ids]
        if ids < len(self.bank.captions):
            return self.bank.captions[ids]
        noun, template = divmod(ids - len(self.bank.captions), len(self.bank.templates))
        return self.bank.templates[template].format(self.bank.nouns[noun])


@dataclass
class TextBank:
    """Distinct captions and noun prompts, with their assignment to N image-text pairs.

    captions: distinct captions, one line each. nouns: distinct nouns. templates: prompt templates with one `{}` each.
    caption: (N,) int32, the pair's index into captions. noun: flat int32 indices into nouns; those of pair n are
    `noun[offset[n]:offset[n + 1]]`. offset: (N + 1,) int64. A loaded bank reads its strings lazily: training needs
    only the indices, which take 60 MB for the 2.6 million captions of CC3M.
    """

    captions: Sequence[str]
    nouns: Sequence[str]
    templates: list[str]
    caption: np.ndarray
    noun: np.ndarray
    offset: np.ndarray

    @classmethod
    def collect(cls, tagged, templates):
        """Build the bank from N pairs (caption, nouns). Runs of whitespace in captions, including line breaks, become one space."""
        caption_index, noun_index = {}, {}
        caption, noun, offset = array("i"), array("i"), array("q", [0])
        for text, words in tagged:
            text = " ".join(text.split())
            caption.append(caption_index.setdefault(text, len(caption_index)))
            noun.extend(noun_index.setdefault(word, len(noun_index)) for word in words)
            offset.append(len(noun))
        return cls(list(caption_index), list(noun_index), list(templates), *(np.array(indices) for indices in (caption, noun, offset)))

    def __len__(self):
        return len(self.caption)

    @property
    def texts(self):
        return Texts(self)

    def draw(self, rows, rng, caption_probability):
        """Draw one text for each pair in rows (B,). Returns text ids, (B,) int64.

        With probability caption_probability, or if the caption has no noun, the caption is drawn; otherwise a prompt,
        with noun and template chosen uniformly at random. rng: numpy Generator.
        """
        choice = rng.random((3, len(rows)))
        first, count = self.offset[rows], self.offset[rows + 1] - self.offset[rows]
        # a pair without nouns has no entry at `first`, which may be past the end: read index 0 and discard it below
        position = np.where(count > 0, first + (choice[1] * count).astype(np.int64), 0)
        noun = self.noun[position] if len(self.noun) else np.zeros_like(position)
        template = (choice[2] * len(self.templates)).astype(np.int64)
        prompt = len(self.captions) + noun * len(self.templates) + template
        return np.where((choice[0] < caption_probability) | (count == 0), self.caption[rows], prompt)

    def subjects(self, text_ids):
        """Subject ids of texts: equal for prompts of the same noun and for equal captions. text_ids (B,) -> (B,) int64."""
        noun = (text_ids - len(self.captions)) // len(self.templates)
        return np.where(text_ids < len(self.captions), text_ids, len(self.captions) + noun)

    def summary(self):
        """Statistics of the bank. duplicates: pairs whose caption occurred before. words_*: quantiles of words per pair's caption."""
        words = np.fromiter((caption.count(" ") + 1 for caption in self.captions), np.int32, len(self.captions))[self.caption]
        nouns = np.diff(self.offset)
        return {
            "captions": len(self.captions),
            "duplicates": len(self) - len(self.captions),
            "nouns": len(self.nouns),
            "texts": len(self.texts),
            **{f"words_{name}": float(np.quantile(words, q)) for name, q in (("5%", 0.05), ("median", 0.5), ("95%", 0.95))},
            "nouns_per_caption": round(float(nouns.mean()), 3),
            "without_nouns": round(float((nouns == 0).mean()), 4),
        }

    def save(self, folder):
        """Write captions.txt and nouns.txt (one per line), bank.json (templates and counts) and pairs.npz (indices) into folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, lines in (("captions", self.captions), ("nouns", self.nouns)):
            (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
        counts = {"captions": len(self.captions), "nouns": len(self.nouns), "templates": self.templates}
        (folder / "bank.json").write_text(json.dumps(counts, indent=1, ensure_ascii=False))
        np.savez(folder / "pairs.npz", caption=self.caption, noun=self.noun, offset=self.offset)

    @classmethod
    def load(cls, folder):
        """Load a bank written by `save`."""
        folder = Path(folder)
        counts = json.loads((folder / "bank.json").read_text())
        captions, nouns = (Lines(folder / f"{name}.txt", counts[name]) for name in ("captions", "nouns"))
        with np.load(folder / "pairs.npz") as pairs:
            return cls(captions, nouns, counts["templates"], *(pairs[name] for name in ("caption", "noun", "offset")))
