"""Texts: the nouns of captions, prompts made of them, and a bank of the distinct texts.

A picture may be paired with its caption or with a prompt made of one of its caption's nouns (MGCA §4.1). The bank
holds each distinct text once, so that the frozen text encoder sees each once, however often training draws it.
"""

import functools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np


@functools.cache
def _tagger():
    from textblob.en.taggers import PatternTagger  # takes a second to import, and only `prepare` looks for nouns

    return PatternTagger()


@functools.lru_cache(maxsize=1 << 16)
def nouns(caption):
    """Distinct nouns of a caption, lower case, in order of appearance.

    Tags are those of TextBlob's PatternTagger, whose lexicon ships with it. Words of one letter are no nouns here.
    """
    words = (word.lower() for word, tag in _tagger().tag(caption) if tag.startswith("NN"))
    return tuple(dict.fromkeys(word for word in words if len(word) > 1 and word.isalpha()))


@dataclass
class TextBank:
    """Distinct captions and noun prompts, and which of them belong to each of N image-text pairs.

    captions: distinct captions. nouns: distinct nouns. templates: prompt templates with one `{}` each.
    caption: (N,) int64, the pair's index into captions. noun: flat int64 indices into nouns, those of pair n at
    `noun[offset[n]:offset[n + 1]]`; offset: (N + 1,) int64.
    """

    captions: list[str]
    nouns: list[str]
    templates: list[str]
    caption: np.ndarray
    noun: np.ndarray
    offset: np.ndarray

    @classmethod
    def build(cls, captions, templates):
        """Make the bank of N captions, one per pair."""
        caption_index, noun_index = {}, {}
        caption, noun, offset = [], [], [0]
        for text in captions:
            caption.append(caption_index.setdefault(text, len(caption_index)))
            noun += [noun_index.setdefault(word, len(noun_index)) for word in nouns(text)]
            offset.append(len(noun))
        as_array = functools.partial(np.array, dtype=np.int64)
        return cls(list(caption_index), list(noun_index), list(templates), as_array(caption), as_array(noun), as_array(offset))

    def __len__(self):
        return len(self.caption)

    @functools.cached_property
    def texts(self):
        """Every distinct text: the captions, then for each noun its prompts. Its indices are text ids."""
        return self.captions + [template.format(noun) for noun in self.nouns for template in self.templates]

    def draw(self, rows, rng, caption_probability):
        """Draw one text for each pair in rows (B,). Returns text ids, (B,) int64.

        With chance caption_probability, or when the caption has no noun, it is the caption; else a prompt of one of
        its nouns, noun and template uniformly at random. rng: numpy Generator.
        """
        choice = rng.random((3, len(rows)))
        first, count = self.offset[rows], self.offset[rows + 1] - self.offset[rows]
        # a pair without nouns has nothing at `first` (perhaps past the end): look at 0 there and discard it below
        position = np.where(count > 0, first + (choice[1] * count).astype(np.int64), 0)
        noun = self.noun[position] if len(self.noun) else np.zeros_like(position)
        template = (choice[2] * len(self.templates)).astype(np.int64)
        prompt = len(self.captions) + noun * len(self.templates) + template
        return np.where((choice[0] < caption_probability) | (count == 0), self.caption[rows], prompt)

    def subjects(self, text_ids):
        """What texts speak of: equal for prompts of the same noun, and for equal captions. text_ids (B,) -> (B,) int64."""
        noun = (text_ids - len(self.captions)) // len(self.templates)
        return np.where(text_ids < len(self.captions), text_ids, len(self.captions) + noun)

    def save(self, folder):
        """Write bank.json (texts) and pairs.npz (indices) into folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        texts = {"captions": self.captions, "nouns": self.nouns, "templates": self.templates}
        (folder / "bank.json").write_text(json.dumps(texts, indent=0, ensure_ascii=False))
        np.savez(folder / "pairs.npz", caption=self.caption, noun=self.noun, offset=self.offset)

    @classmethod
    def load(cls, folder):
        """Read what `save` wrote."""
        texts = json.loads((Path(folder) / "bank.json").read_text())
        with np.load(Path(folder) / "pairs.npz") as pairs:
            return cls(**texts, **{name: pairs[name] for name in ("caption", "noun", "offset")})
