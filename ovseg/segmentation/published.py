"""A CLIP that others have published, read without training: its name, its weights, and the settings it is used with."""

import logging
import os
import pickle
import textwrap
from pathlib import Path

import huggingface_hub as hf

from ..clip.config import model_config, model_names, nearest, patch_size
from ..schema import HUB, LOCAL, MODES, Clip, Segment

TEMPLATES = """itap of a {}.|a bad photo of a {}.|a origami {}.|a photo of the large {}.|a {} in a video game.|art of the {}.
|a photo of the small {}.|a photo of many {}.|a photo of {}s.""".replace("\n", "").split("|")  # TCL's, a subset of CLIP's
WEIGHTS = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]  # of a repository; open_clip takes the first that is there


def parse(name):
    """(model, pretrained), as in schema.Clip, of "NAME/TAG", "NAME/FILE", "hf-hub:OWNER/NAME", "local-dir:FOLDER" or "FOLDER"."""
    if name.startswith((HUB, LOCAL)):
        return name, None
    if Path(name).is_dir():
        return LOCAL + name, None
    model, _, pretrained = name.partition("/")
    return model, pretrained or None


def settings(patch, image_size):
    """schema.Segment for a CLIP with this patch and pretraining size, in pixels. The windows, the stride and the templates are those of the
    MGCA paper: 448 and 224 for a CLIP of 224, whose positions are interpolated. A pixel is described by itself, and `scale` is that of
    SCLIP's code; the paper's scale and meta-points are for trained embeddings. The threshold has not been chosen on any data."""
    window = min(448, 2 * image_size) // patch * patch
    size = {"short_side": window, "max_ratio": 4.5715, "resize": "bicubic", "window": window, "stride": window // 2, "batch": 8}
    units = {"unit": "pixel", "meta_points": 36, "groups": 8, "affinity": "cosine", "precision": "float32"}
    return Segment(**size, **units, synonyms="mean", averaged="cosine", scale=40.0, threshold=0.5, refine=None, templates=TEMPLATES)


def open_published(model, pretrained, dense, device):
    """The FrozenCLIP of a published model, which open_clip downloads once. model, pretrained: from `parse`. dense: one of schema.MODES.
    Raises ValueError or FileNotFoundError with one line: an unknown name, no download, or a file that is no checkpoint of the model."""
    if dense not in MODES:
        raise ValueError(f"dense = {dense!r}: must be one of {', '.join(MODES)}")
    name = f"{model}/{pretrained}" if pretrained else model
    if not model.startswith(HUB):
        check_name(model, pretrained)
    if not model.startswith(LOCAL) and not (pretrained and os.path.isfile(pretrained)):
        check_download(model, pretrained)
    from ..clip.frozen import FrozenCLIP  # slow import (open_clip)

    logging.disable(logging.ERROR)  # open_clip logs what it also raises
    try:
        wanted = Clip.model_construct(model=model, pretrained=pretrained, dense=dense, positions="size", precision="float32")
        return FrozenCLIP.open(wanted, device)
    except pickle.UnpicklingError:
        raise ValueError(f"{name}: its file is no checkpoint of tensors alone, and nothing else is unpickled") from None
    except Exception as error:  # torch, open_clip and safetensors raise whatever they like on files of other models
        raise ValueError(f"{name} cannot be loaded: {textwrap.shorten(str(error) or type(error).__name__, 300)}") from None
    finally:
        logging.disable(logging.NOTSET)


def check_name(model, pretrained):
    """Raise ValueError unless model is a supported one of open_clip or a folder, and pretrained a file or one of its tags."""
    config = model_config(model)
    if config is None and model.startswith(LOCAL):
        raise ValueError(f"{model.removeprefix(LOCAL)} holds no open_clip_config.json")
    if config is None:
        name = f"{model}/{pretrained}" if pretrained else model
        raise ValueError(f"{name}: no model of open_clip, and no local-dir:FOLDER; the nearest are {nearest(model, model_names())}")
    if (patch_size(config["vision_cfg"]) or 1) == 1:
        raise ValueError(f"{model}: its image encoder must be a plain ViT, or SigLIP's")
    if not model.startswith(LOCAL) and not (pretrained and os.path.isfile(pretrained)):
        from open_clip.pretrained import list_pretrained_tags_by_model  # takes seconds

        if pretrained not in (tags := list_pretrained_tags_by_model(model)):
            if pretrained is None:
                raise ValueError(f"{model}: needs weights, a file or one of {', '.join(tags)}")
            raise ValueError(f"{pretrained!r} is no file, and no tag of {model}; the nearest are {nearest(pretrained, tags)}")


def check_download(model, pretrained):
    """Raise FileNotFoundError with the file that is needed, unless it was downloaded before or can be."""
    from open_clip.pretrained import get_pretrained_cfg

    hub = f"{model.removeprefix(HUB)}/" if model.startswith(HUB) else get_pretrained_cfg(model, pretrained).get("hf_hub")
    if not hub:
        return  # a few old weights, of which open_clip knows only an address
    repository, file = os.path.split(hub)
    files = [file] if file else WEIGHTS
    try:
        if not any(isinstance(hf.try_to_load_from_cache(repository, file), str) for file in files):
            hf.get_hf_file_metadata(hf.hf_hub_url(repository, files[0]))
    except hf.errors.EntryNotFoundError:
        pass  # the next one is
    except Exception as error:  # of the network, in whatever library; a name that cannot be one of the Hub
        how = f"save it, and give its path in place of {pretrained!r}" if pretrained else "save both in a folder, and give the folder"
        needed = "open_clip_config.json and " * (not pretrained) + f"{files[0]} from https://huggingface.co/{repository}: {how}"
        raise FileNotFoundError(f"{model}: no download ({textwrap.shorten(str(error), 100)}); needed is {needed}") from None
