"""Which runs a study holds besides its headline: their names and what they change. dvc.yaml has a stage for each.

A run's files are models/NAME/, results/NAME.json, runs/NAME-train.ipynb and runs/NAME-evaluate.ipynb.
"""

from dataclasses import dataclass
from pathlib import Path

HEADLINE, FOLDER = "mgca", "ablations"


@dataclass(frozen=True)
class Run:
    """One training: its name, the ablation that it belongs to, and what it changes in params.yaml."""

    name: str
    ablation: str
    changes: dict


def trained(ablations):
    """All trained runs besides the headline. ablations: params.Ablations. Returns a list of Run."""
    a = ablations
    found = [("headline", f"seed-{seed}", {}, seed) for seed in a.headline.seeds]
    found += [("granularity", f"{v}-seed-{s}", {"mgca.granularity": v}, s) for v in a.granularity.values for s in a.granularity.seeds]
    found += [("alpha", f"{v}-seed-{s}", {"mgca.alpha": v}, s) for v in a.alpha.values for s in a.alpha.seeds]
    found += [
        ("beta", f"{v}-{levels}-seed-{s}", {"mgca.beta": v, "mgca.granularity": levels}, s)
        for v in a.beta.values
        for levels in a.beta.granularity
        for s in a.beta.seeds
    ]
    found += [("k", f"{v}-seed-{s}", {"mgca.k": v}, s) for v in a.k.values for s in a.k.seeds]
    return [Run(f"{FOLDER}/{ablation}/{name}", ablation, changes | {"train.seed": seed}) for ablation, name, changes, seed in found]


def untrained(ablations):
    """{way: name} of the runs that train nothing, by how they read dense features (dense.DENSE_MODES)."""
    return {way: f"{FOLDER}/dense/{way}" for way in ablations.dense}


def headlines(seeds):
    """The names of the headline and its repeats: one point, several seeds. seeds: of params' ablations.headline."""
    return [HEADLINE, *(f"{FOLDER}/headline/seed-{seed}" for seed in seeds)]


def of_levels(ablations, seed):
    """{granularity: name} of the runs of the granularity ablation at that seed."""
    runs = [run for run in trained(ablations) if run.ablation == "granularity" and run.changes["train.seed"] == seed]
    return {run.changes["mgca.granularity"]: run.name for run in runs}


def result_files(ablations):
    """Every result of the study: baselines, headline, ablations, and the sweep of meta-points. Paths from the project's folder."""
    names = [*untrained(ablations).values(), HEADLINE, *(run.name for run in trained(ablations))]
    names += [
        f"{FOLDER}/meta-points/{count}/{Path(name).name}" for count in ablations.meta_points for name in headlines(ablations.headline.seeds)
    ]
    return [f"results/{name}.json" for name in names]
