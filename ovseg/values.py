"""Types and ranges of single values in params.yaml, from which schema.py builds the sections."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

METHODS = ("mgca", "mixreorg", "tcl", "pacl", "groupvit", "supervised")  # files of ovseg/methods
Dense = Literal["clip", "maskclip", "sclip", "clearclip", "naclip", "pearl"]  # equals dense.DENSE_MODES, which is slow to import
Layout = Literal["voc", "voc20", "context", "context59", "coco_object", "coco_stuff", "cityscapes", "ade20k"]  # layouts.LAYOUTS

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]
Index = Annotated[int, Field(ge=0)]


def _one_slot(template):
    if template.count("{}") != 1 or template.replace("{}", "").count("{") + template.replace("{}", "").count("}"):
        raise ValueError("a text with exactly one {} and no other braces")
    return template


def _square(points):
    if points < 1 or round(points**0.5) ** 2 != points:
        raise ValueError("a square number: meta-points lie on a square grid")
    return points


def distinct(values):
    if len(set(values)) < len(values):
        raise ValueError("each value once")
    return values


def _methods(method):
    names = method.split("+")
    if names != [name for name in METHODS if name in names] or ("supervised" in names and len(names) > 1):
        raise ValueError(f"one of {', '.join(METHODS)}, or several of these but supervised, in this order, joined by +")
    return method


Method = Annotated[str, AfterValidator(_methods)]
Template = Annotated[str, AfterValidator(_one_slot)]
Points = Annotated[int, AfterValidator(_square)]
Units = Annotated[list[Literal["pixel", "meta-point", "group"]], Field(min_length=1), AfterValidator(distinct)]
