"""Texts: an image is paired with its caption or with a prompt built from one of the caption's nouns (MGCA §4.1)."""

import functools
import html
import json
from array import array
from dataclasses import dataclass
from pathlib import Path

import numpy as np


def plain(text):
    """A caption in one line, without HTML's names of characters (&amp;) and with CC12M's <PERSON> as a word."""
    return " ".join(html.unescape(text).replace("<PERSON>", "person").split())


@functools.lru_cache(maxsize=1 << 16)
def nouns(caption):
    """Distinct nouns of an English caption by TextBlob's default tagger, lower case, in order; no single letters, no other scripts."""
    from textblob.en import tag  # takes a second to import, and only `prepare` looks for nouns

    words = (word.lower() for word, kind in tag(plain(caption)) if kind.startswith("NN"))
    return tuple(dict.fromkeys(word for word in words if len(word) > 1 and word.isalpha() and max(word) <= "\u024f"))  # Latin


@dataclass
class TextBank:
    """Distinct captions and noun prompts, each to be encoded once, with their assignment to N image-text pairs."""

    captions: list[str]  # distinct, one line each
    nouns: list[str]  # distinct
    templates: list[str]  # of prompts, with one {} each
    caption_index: np.ndarray  # (N,) int32, each pair's index into captions
    noun_index: np.ndarray  # int32 indices into nouns; those of pair n are noun_index[offset[n] : offset[n + 1]]
    offset: np.ndarray  # (N + 1,) int64

    @classmethod
    def collect(cls, tagged, templates):
        """Build the bank from N pairs (caption, nouns). Captions are made `plain`."""
        captions, nouns = {}, {}  # their indices
        caption_index, noun_index, offset = array("i"), array("i"), array("q", [0])
        for text, words in tagged:
            caption_index.append(captions.setdefault(plain(text), len(captions)))
            noun_index.extend(nouns.setdefault(word, len(nouns)) for word in words)
            offset.append(len(noun_index))
        return cls(list(captions), list(nouns), list(templates), *map(np.array, (caption_index, noun_index, offset)))

    def __len__(self):
        return len(self.caption_index)

    @functools.cached_property
    def texts(self):
        """All distinct texts, indexed by text id: the captions, then the prompts of each noun."""
        return [*self.captions, *(template.format(noun) for noun in self.nouns for template in self.templates)]

    def draw(self, rows, rng, caption_probability):
        """Draw a text for each pair in rows (B,): with caption_probability, or if the caption has no noun, the
        caption; otherwise any prompt of any of its nouns. Returns text ids, (B,) int64. rng: numpy Generator."""
        choice = rng.random((3, len(rows)))
        first, count = self.offset[rows], self.offset[rows + 1] - self.offset[rows]
        # a pair without nouns has no entry at `first`, which may be past the end: read index 0 and discard it below
        position = np.where(count > 0, first + (choice[1] * count).astype(np.int64), 0)
        noun = self.noun_index[position] if len(self.noun_index) else np.zeros_like(position)
        template = (choice[2] * len(self.templates)).astype(np.int64)
        prompt = len(self.captions) + noun * len(self.templates) + template
        return np.where((choice[0] < caption_probability) | (count == 0), self.caption_index[rows], prompt)

    def subjects(self, text_ids):
        """Subject ids of texts: equal for prompts of the same noun and for equal captions. text_ids (B,) -> (B,) int64."""
        count = len(self.captions)
        return np.where(text_ids < count, text_ids, count + (text_ids - count) // len(self.templates))

    @functools.cached_property
    def named(self):
        """Which nouns each pair has: sparse bool (N, V)."""
        from scipy.sparse import csr_array  # the workers of `prepare` do not need it

        shape = len(self), len(self.nouns)
        return csr_array((np.ones(len(self.noun_index), bool), self.noun_index, self.offset), shape)

    def describes(self, text_ids, rows):
        """Whether each text is a prompt of a noun of each pair. text_ids (T,), rows (B,) -> (B, T) bool. False for captions."""
        prompts = text_ids >= len(self.captions)
        nouns = (text_ids[prompts] - len(self.captions)) // len(self.templates)
        described = np.zeros((len(rows), len(text_ids)), bool)
        described[:, prompts] = self.named[rows][:, nouns].toarray()
        return described

    def save(self, folder):
        """Write bank.json (captions, nouns and templates) and pairs.npz (indices) into folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        texts = {"captions": self.captions, "nouns": self.nouns, "templates": self.templates}
        (folder / "bank.json").write_text(json.dumps(texts, indent=1, ensure_ascii=False), encoding="utf-8")
        np.savez(folder / "pairs.npz", caption_index=self.caption_index, noun_index=self.noun_index, offset=self.offset)

    @classmethod
    def load(cls, folder):
        """Load a bank written by `save`."""
        with np.load(Path(folder) / "pairs.npz") as indices:
            return cls(**json.loads((Path(folder) / "bank.json").read_text(encoding="utf-8")), **indices)
