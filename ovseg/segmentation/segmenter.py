"""From an image and a list of names to a label map: sliding windows, units, class scores (MGCA §4.1, §4.2)."""

import functools
import os
from dataclasses import dataclass
from numbers import Real
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import ModelHubMixin
from PIL import Image

from ..data.files import write_json
from ..data.images import to_rgb
from ..methods import groupvit
from ..schema import LOCAL, Clip, Segment
from ..training.decoder import Decoder
from . import hub, reco, refinement, units
from .names import all_names, check_names, merged, synonyms
from .windows import BACKGROUND, Scores, cut_windows, probabilities, stitch


@dataclass(frozen=True)
class Segmentation:
    """labels: (H, W) int64, indices into names. names: the classes; names[0] is the background, if there is one.

    grid: Scores of the classes, followed by the others. others: additional names, reported as background. threshold: softmax scores below
    it are background; None without one. scores: (C, H, W) float32 of the classes without background and others, the cosine between each
    pixel's unit and the class, or its softmax if segment.averaged is "softmax". Computed on first access; may take gigabytes.
    """

    labels: np.ndarray
    names: tuple[str, ...]
    grid: Scores
    others: tuple[str, ...] = ()
    threshold: float | None = None

    @functools.cached_property
    def scores(self):
        classes = len(self.grid.mosaic) - len(self.others)
        return Scores(self.grid.mosaic[:classes], self.grid.down, self.grid.across).rows().cpu().numpy()


class Segmenter(ModelHubMixin):
    """An open-vocabulary segmenter: ovseg.Segmenter.load("models/default").segment(image, ["cat", "sofa"]).

    clip: FrozenCLIP, or None where only cached features are scored. decoder: Decoder; an untrained one hands CLIP's dense features on as
    they are, which makes this MaskCLIP, SCLIP, ... settings: schema.Segment. grouping: the trained groupvit.Objective that the unit
    learned-group needs, else None. refer: a reco.reader, for ReCo's scores, else None. From ModelHubMixin: save_pretrained(folder) and
    push_to_hub("owner/name", private=...), for one that `load` opened. They write all its seeds, its CLIP and a model card, and raise the
    errors of hub.write_model.
    """

    folder = None  # the one that `load` read

    def __init__(self, clip, decoder, settings, grouping=None, refer=None):
        if clip is not None and settings.window % clip.patch:
            raise ValueError(f"segment.window = {settings.window}: must be a multiple of CLIP's patch, {clip.patch}")
        if settings.unit == "learned-group" and grouping is None:
            raise ValueError("segment.unit = 'learned-group': only a training by groupvit has groups")
        self.clip, self.decoder, self.settings, self.grouping, self.refer = clip, decoder.eval(), settings, grouping, refer
        self.embed_classes = functools.lru_cache(1)(  # of a tuple of names, for `classify`; cached across images
            lambda names: merged(clip.embed_classes(all_names(names), settings.templates), names, settings.synonyms)
        )

    @classmethod
    def load(cls, folder, device="auto", seed=0):
        """Load a trained model, e.g. "models/default", and its CLIP. device: auto, cpu or cuda. seed: which of its trainings. Raises
        FileNotFoundError if the folder holds no such segmenter or its CLIP is missing."""
        from .. import params
        from ..clip.frozen import FrozenCLIP  # slow import (open_clip), not needed for evaluation on cached features

        folder = Path(folder)
        config = hub.read_json(folder, "segmenter.json")
        if config["clip"]["model"].startswith(LOCAL):
            config["clip"]["model"] = LOCAL + os.path.normpath(folder / config["clip"]["model"].removeprefix(LOCAL))
        device = params.device(device)
        clip = FrozenCLIP.open(Clip.model_validate(config["clip"]), device)
        since = {"synonyms": "mean", "refine": None}  # models saved before these keys lack them
        settings = Segment.model_validate(since | config["segment"])
        segmenter = cls.of_training(folder / "seeds" / str(seed), clip, settings, device)
        segmenter.folder = folder
        return segmenter

    @classmethod
    def from_pretrained(cls, name, *, device="auto", seed=0, **options):
        """Load a published model. name, options, errors: see hub.fetch; device, seed: see `load`."""
        return cls.load(hub.fetch(name, **options), device, seed)

    @classmethod
    def untrained(cls, model, pretrained=None, dense="sclip", device="auto"):
        """A published CLIP, read without training: Segmenter.untrained("ViT-B-16-quickgelu", "openai"), or "hf-hub:owner/name". model,
        pretrained: as in schema.Clip. dense: one of schema.MODES. device: see `load`. Settings and errors: see published.py."""
        from .. import params
        from . import published

        clip = published.open_published(model, pretrained, dense, params.device(device))
        return cls(clip, Decoder(clip.width).to(clip.device), published.settings(clip.patch, clip.image_size))

    def _save_pretrained(self, save_directory):
        if self.folder is None:
            raise ValueError("only a segmenter that Segmenter.load opened can be saved: its files are copied")
        hub.write_model(self.folder, save_directory, "/".join(save_directory.parts[-2:]))  # push_to_hub writes to TEMPORARY/OWNER/NAME

    @classmethod
    def of_training(cls, folder, clip, settings, device):
        """Load the segmenter from a training folder (loop.train_into). device: torch.device. Other arguments: see the class."""
        grouping = groupvit.load_grouping(folder)
        return cls(clip, Decoder.load(folder).to(device), settings, grouping and grouping.to(device))

    def save_settings(self, folder, clip_settings):
        """Write segmenter.json into a model folder. clip_settings: schema.Clip, the CLIP that `load` will open."""
        clip = clip_settings.model_dump()
        if clip["model"].startswith(LOCAL):  # relative to the folder, so that it loads from any working directory
            clip["model"] = LOCAL + os.path.relpath(clip["model"].removeprefix(LOCAL), folder)
        write_json(Path(folder) / "segmenter.json", {"clip": clip, "segment": self.settings.model_dump()}, indent=2)

    def segment(self, image, names, background=False, threshold=None, others=None):
        """Segment an image into the named classes. Returns a Segmentation at the original image size.

        image: PIL image of any size and mode, or (H, W, 3) or (H, W) uint8 array. names: one or more distinct classes, as "car" or, with
        synonyms, "car; automobile". background: whether pixels may belong to no class; they get label 0, and the labels of names start at
        1. threshold: 0..1, the softmax score below which a pixel is background; None: from settings. others: additional names (see
        check_names); pixels most similar to one of them are background, too, and the softmax is over all. Raises ValueError (empty image,
        bad names, bad threshold) and TypeError.
        """
        names, others = check_names(names, background, others)
        if threshold is not None and not (isinstance(threshold, Real) and 0 <= threshold <= 1):
            raise ValueError(f"threshold = {threshold!r}: must be between 0 and 1")
        image = as_image(image)
        windows, where = cut_windows(image, self.settings)
        descriptions = self.describe(self.embed(self.encode(windows)))
        scores = self.classify(descriptions, where, self.embed_classes((*names, *others)), (image.height, image.width), image)
        threshold = None if not background else self.settings.threshold if threshold is None else threshold
        labels = scores.labels(self.scale, threshold, len(others))
        names = tuple(synonyms(name)[0] for name in names)
        names = (BACKGROUND, *names) if background or others else names
        return Segmentation(labels.cpu().numpy(), names, scores, tuple(others), threshold)

    @torch.no_grad()
    def encode(self, windows):
        """Dense CLIP features of windows, in batches of settings.batch. (n, S, S, 3) uint8 -> (n, d, h, w)."""
        step = self.settings.batch
        return torch.cat([self.clip.encode_dense(windows[start : start + step]) for start in range(0, len(windows), step)])

    @torch.no_grad()
    def embed(self, features):
        """Pixel embeddings of windows from their dense CLIP features. (n, d, h, w) -> (n, d, 2h, 2w)."""
        with torch.autocast(features.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            return torch.cat([self.decoder(batch).float() for batch in features.split(self.settings.batch)])

    @torch.no_grad()
    def describe(self, embeddings):
        """Embedding used to classify each pixel: the mean of its unit, normalised. (n, d, h, w) -> (n, d, h, w)."""
        s = self.settings
        return F.normalize(units.form(embeddings, s.unit, s.meta_points, s.groups, s.affinity, self.grouping)[0], dim=1)

    @torch.no_grad()
    def classify(self, descriptions, where, classes, size, image):
        """Scores (H, W) = `size` of a PIL RGB image, stitched from its windows: cosines or, by segment.averaged, their softmax over the
        classes, refined by segment.refine. descriptions: from `describe`. where: WindowGrid of them. classes: (C, d), unit
        length; or (C, S, d), S names of each class, whose largest cosine counts. With `refer`, they are ReCo's scores, not cosines."""
        scores = largest_cosines(descriptions, classes)
        if self.refer:
            scores = reco.product(scores, largest_cosines(descriptions, self.refer(classes)))
        scores = probabilities(scores, self.settings.scale, 1) if self.settings.averaged == "softmax" else scores
        if self.settings.refine:
            return refinement.refined(scores, where, self.settings, size, image)
        return stitch(scores, where, self.settings.window, size)

    @property
    def scale(self):
        """Scale of the softmax over the scores, to compare it with a threshold; None if they are softmax already."""
        return None if self.settings.averaged == "softmax" else self.settings.scale

    def with_unit(self, unit, **others):
        """Copy of this segmenter with another semantic unit, and other settings, if given. CLIP and decoder are shared."""
        settings = self.settings.model_copy(update={"unit": unit} | others)
        return Segmenter(self.clip, self.decoder, settings, self.grouping, self.refer)


def largest_cosines(descriptions, classes):
    """Cosines of unit-length descriptions (n, d, h, w) and classes (C, d), or the largest of (C, S, d): (n, C, h, w)."""
    names = classes.unbind(1) if classes.ndim == 3 else [classes]
    return functools.reduce(torch.maximum, (torch.einsum("ndhw,cd->nchw", descriptions, of_name) for of_name in names))


def as_image(image):
    """A PIL image, or an (H, W, 3) or (H, W) uint8 array, as PIL RGB image. Raises TypeError for others, ValueError if it is empty."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and (image.ndim == 2 or image.shape[2:] == (3,)):
        image = Image.fromarray(image) if image.size else Image.new("RGB", (0, 0))
    if not isinstance(image, Image.Image):
        raise TypeError(f"image: {type(image).__name__}: must be a PIL image or a uint8 array of shape (H, W, 3) or (H, W)")
    if 0 in image.size:
        raise ValueError("image: is empty")
    return to_rgb(image)
