"""Every key of params.yaml: bad values are refused before anything runs, in a line that names the key.

Keys are those of params.yaml, bad values follow from the types in schema.py: a new key is tested as soon as it stands in both.
"""

import copy
import math
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from ovseg import params, preflight, schema

PROJECT = Path(__file__).parent.parent
VALUES = YAML(typ="safe").load((PROJECT / "params.yaml").read_text())
SCHEMA = schema.Params.model_json_schema()
OF_TYPE = {"null": None, "boolean": True, "integer": 3, "number": 2.5, "string": "no such value", "array": ["no such value"]}
OF_TYPE |= {"object": {"no_such_key": 1}}
# Texts of which the values alone do not tell whether they are good: `prepare` does, in its first seconds, by opening what they name.
FILES = {"data.shards"}
FILES |= {f"benchmarks.{name}.{key}" for name in VALUES["benchmarks"] for key in ("shards", "label", "classes", "calibration")}


def leaves(values, above=""):
    """Keys of values that are no sections, as section.key."""
    for name, value in values.items():
        yield from leaves(value, f"{above}{name}.") if isinstance(value, dict) and value else [above + name]


def sections(values, above=""):
    for name, value in values.items():
        if isinstance(value, dict) and value:
            yield above + name
            yield from sections(value, f"{above}{name}.")


LEAVES, SECTIONS = list(leaves(VALUES)), list(sections(VALUES))


def resolved(node):
    return resolved(SCHEMA["$defs"][node["$ref"].rsplit("/", 1)[1]]) if "$ref" in node else node


def described(key):
    """The kinds of values that a key allows, as JSON schemas."""
    node = resolved(SCHEMA)
    for part in key.split("."):
        others = node.get("additionalProperties") or [*node.get("patternProperties", {}).values(), None][0]  # of a dict
        node = resolved(node.get("properties", {}).get(part) or others)
    return [resolved(kind) for kind in node.get("anyOf", [node])]


def wrong_types(kinds):
    """Values of every type that none of the kinds is."""
    allowed = {kind["type"] for kind in kinds}
    allowed |= {"integer"} if "number" in allowed else set()
    return [value for name, value in OF_TYPE.items() if name not in allowed]


def out_of_range(kinds, key):
    """Values of an allowed type that lie beyond its limits, or outside of its list."""
    for kind in kinds:
        if kind["type"] in ("integer", "number"):
            if kind["type"] == "integer" or {"minimum", "exclusiveMinimum"} & set(kind):
                yield -1  # no bounded number here may be negative, and no integer
            yield from (math.nan, math.inf) if kind["type"] == "number" else ()
            yield from (kind[name] + step for name, step in (("minimum", -1), ("maximum", 1)) if name in kind)
            yield from (kind[name] for name in ("exclusiveMinimum", "exclusiveMaximum") if name in kind)
            if "multipleOf" in kind:
                yield kind.get("minimum", 0) + kind["multipleOf"] // 2
        elif kind["type"] == "string" and key not in FILES:
            yield "no such value"
            yield ""
        elif kind["type"] == "array":
            items = [resolved(item) for item in resolved(kind["items"]).get("anyOf", [kind["items"]])]
            items = [resolved(item) for item in items]
            if kind.get("minItems"):
                yield []
            for bad in (*wrong_types(items), *out_of_range(items, key)):
                yield [bad]
        elif kind["type"] == "object" and kind["additionalProperties"]:  # a dict by benchmark, not a section
            values = [resolved(kind["additionalProperties"])]
            for bad in (*wrong_types(values), *out_of_range(values, key)):
                yield {next(iter(VALUES["benchmarks"])): bad}


def having(key, value):
    values = copy.deepcopy(VALUES)
    *above, last = key.split(".")
    section = values
    for name in above:
        section = section[name]
    section[last] = value
    return values


def refused(key, value, monkeypatch):
    """What `python -m ovseg.params` says of params.yaml with that value; None if it accepts it."""
    monkeypatch.setattr(params, "_values", lambda path: having(key, value))  # as a file would hold it, not a number is .nan there
    monkeypatch.chdir(PROJECT)
    try:
        preflight.check(params.load_runs())
    except params.ParamsError as error:
        return str(error)


@pytest.mark.parametrize("key", LEAVES)
def test_a_value_of_a_wrong_type_is_refused_by_its_key(key, monkeypatch):
    values = wrong_types(described(key))
    assert len(values) >= 3
    for value in values:
        line = refused(key, value, monkeypatch)
        assert line and len(line.splitlines()) == 1 and key in line, (value, line)


@pytest.mark.parametrize("key", [key for key in LEAVES if key not in FILES and described(key) != [{"type": "boolean"}]])
def test_a_value_out_of_range_is_refused_by_its_key(key, monkeypatch):
    kinds = [{name: value for name, value in kind.items() if name != "title"} for kind in described(key)]
    values = list(out_of_range(kinds, key))
    assert values or kinds == [{"type": "boolean"}]
    for value in values:
        line = refused(key, value, monkeypatch)
        assert line and len(line.splitlines()) == 1 and key in line, (value, line)


@pytest.mark.parametrize("key", SECTIONS)
@pytest.mark.parametrize("value", [None, 3, "no such value", ["a"], {"no_such_key": 1}])
def test_a_section_that_is_none_is_refused_by_its_key(key, value, monkeypatch):
    line = refused(key, value, monkeypatch)
    assert line and len(line.splitlines()) == 1 and all(part in line for part in key.split("."))


def test_the_values_as_they_are_pass(monkeypatch):
    assert refused("device", VALUES["device"], monkeypatch) is None
    assert len(LEAVES) > 80 and FILES < set(LEAVES) | {"benchmarks.scenes.calibration"}
