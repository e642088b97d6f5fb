"""The report on a study, results/REPORT.md: verdicts on the paper's findings, all runs, and our numbers next to the paper's."""

from pathlib import Path

import pandas as pd

from .. import params
from .findings import Finding
from .results import CHOSEN, DEFAULT, DENSE_TITLES, GROUPS, NOT_RUN, by_seed, mean_std

PAPER_PIXELS = 3136  # number of meta-points in the paper's Table 4 that stands for every pixel by itself
OTHER = "same verdict on the other processor"
INTRODUCTION, METHODS, AGAINST, GAP = Path(__file__).with_name("report.md").read_text(encoding="utf-8").split("\n---\n")


def sections(results, findings, paper, speeds, other=None):
    """The sections of the report, a list of (title, Markdown text, DataFrame of texts). findings: from findings.judge. paper: of
    paper/tables.yaml. speeds: {run: images per second}, of the methods and the baseline. other: from processors.compare."""
    verdicts = pd.DataFrame([(f.code, f.claim, f"**{f.verdict}**") for f in findings], columns=["", "finding", "verdict"])
    there, spread = other or ({}, "")
    if there:
        verdicts[OTHER] = ["yes" if there[f.code] == f.verdict else f"no: {there[f.code]}" for f in findings]
    parts = [("Do the paper's findings hold here?", f"{INTRODUCTION.strip()}\n\n{spread}", verdicts)]
    for f in findings:
        text = "\n\n".join([f"**{f.verdict.capitalize()}.** {f.rule}".rstrip(), *(f"{sentence}." for sentence in f.missing)])
        parts.append((f"{f.code}: {f.claim}", text, comparisons_table(f.comparisons)))
    parts.append(("Methods", METHODS, methods_table(results, paper, speeds)))
    parts.append(("The default run's method against the others", AGAINST, comparisons_table(against(results))))
    parts.append(("All runs", GAP if results.supervised else "", runs_table(results)))
    for number, group in enumerate(GROUPS, 1):
        if set(paper[group]["benchmarks"]) & set(results.rows["benchmark"]):
            parts.append((f"Benchmarks {group}, beside the paper's Table {number}", "", benchmarks_table(results, paper[group])))
    averaged = "\n\n".join(averaged_over(results, group, paper[group]["benchmarks"]) for group in GROUPS)
    pixels, points, counts = results.averages("pixel"), results.averages("meta-point"), results.series("segment.meta_points")
    levels = {"none": results.baseline} | results.series("mgca.granularity")
    granularity = beside("granularity", paper["granularity"], {level: (pixels, run) for level, run in levels.items()})
    ours = {PAPER_PIXELS: (pixels, DEFAULT)} | {count: (points, counts[count]) for count in sorted(counts, reverse=True)}
    meta_points = beside("points", paper["meta_points"], ours).replace({"points": {PAPER_PIXELS: "pixel"}})
    parts.append(("Granularity, by pixels, beside the paper's Table 3", averaged, granularity))
    return [*parts, ("Meta-points, beside the paper's Table 4", averaged, meta_points)]


def markdown(listed):
    """The report's text. listed: from `sections`, and more of them; an empty table, or None, is left out."""
    parts = []
    for title, text, table in listed:
        written = "" if table is None or table.empty else table.to_markdown(index=False, disable_numparse=True)
        parts += [f"{'##' if parts else '#'} {title}", text, written]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def method_title(method):
    """The name of one of Results.methods in tables: "mgca+mixreorg" becomes "MGCA + MixReorg"."""
    method, *texts = method.split(", ")
    return ", ".join([" + ".join(params.METHODS[part].TITLE for part in method.split("+")), *texts])


def scores(results):
    """{run: {column: text}}: for each group of benchmarks, mIoU by the run's own unit, by pixels, and the gap that it closes."""
    averages = {"": results.averages(), ", by pixels": results.averages("pixel"), ", gap closed": results.gap_closed()}
    kinds = {f"{group}{what}": (rows, group) for group in GROUPS if group in set(results.rows["group"]) for what, rows in averages.items()}
    return {run: {name: mean_std(by_seed(rows, run, group), "") for name, (rows, group) in kinds.items()} for run in results.changes}


def written_columns(rows):
    """Rows {column: text} as a DataFrame, without columns in which nothing is written."""
    return pd.DataFrame(rows).replace("", None).dropna(axis=1, how="all").fillna("")


def comparisons_table(comparisons):
    """One row per comparison, from findings.compare."""
    rows = []
    for c in comparisons:
        first, second = (f"{m:.1f}" + f" ± {std:.1f}" * (std > 0) for m, std in zip(c["means"], c["deviations"], strict=True))
        p = "" if pd.isna(c["p"]) else "< 0.001" if c["p"] < 0.001 else f"{c['p']:.3f}"
        numbers = (f"{c['difference']:+.2f}", "" if pd.isna(c["told"]) else f"{c['told']:.2f}", str(c["n"]), p)
        rows.append((c["benchmarks"], c["first"], first, c["second"], second, *numbers, c["verdict"]))
    columns = ["benchmarks", "first", "mIoU", "second", "mIoU ", "difference", "could tell", "n", "p", "verdict"]
    return pd.DataFrame(rows, columns=columns)


def runs_table(results):
    """One row per run. The supervised run always has a row."""
    names = {run: ", ".join(f"{key} = {value}" for key, value in changes.items()) or DEFAULT for run, changes in results.changes.items()}
    names |= {run: f"{title}, untrained" for run, title in DENSE_TITLES.items() if run in names}
    rows = [{"run": names[run]} | texts for run, texts in scores(results).items()]
    if results.supervised is None:
        rows.append({"run": "train.method = supervised"} | {group: NOT_RUN for group in dict.fromkeys(results.rows["group"])})
    return written_columns(rows)


def methods_table(results, paper, speeds):
    """One row for the baseline, ReCo and each method, with the averages that the paper gives it. Arguments as in `sections`."""
    texts, rows = scores(results), []
    untrained = dict.fromkeys(run for run in (results.baseline, "reco") if run in results.changes)
    for run, method in {**untrained, **results.methods}.items():
        title = method_title(method) if method else DENSE_TITLES[run]
        own = {key: value for key, value in results.changes[run].items() if key not in (*CHOSEN, "clip.dense")}
        row = {"method": title, "its own": ", ".join(f"{key.split('.')[1]} {value}" for key, value in own.items())} | texts[run]
        for group in GROUPS:
            averages = [theirs["average"] for theirs in paper[group]["rows"] if theirs["method"] == title and theirs["average"] is not None]
            row[f"{group}, paper"] = f"{max(averages):.1f}" if averages else ""
        if method:
            weights, seconds = results.costs.get(run, (0, 0))
            row |= {"trained weights": f"{weights:,}", "seconds a training": f"{seconds:.0f}"}
        rows.append(row | {"images a second": f"{speeds[run]:.1f}" if run in speeds else ""})
    return written_columns(rows)


def against(results):
    """Compare the default run's method with every other one that learns from texts: a list of comparisons."""
    finding, titles = Finding("", ""), {run: method_title(method) for run, method in results.methods.items() if method != "supervised"}
    for run in list(titles)[1:]:
        finding.add(results.averages(), (titles[DEFAULT], titles[run]), DEFAULT, run)
    return finding.comparisons


def benchmarks_table(results, paper):
    """The paper's Table 1 or 2 with our methods, by their own units, and the baseline below. paper: that table of paper/tables.yaml."""
    columns, rows = [*paper["benchmarks"], "average"], []
    for row in paper["rows"]:
        numbers = ["–" if number is None else f"{number:.1f}" for number in (*row["miou"], row["average"])]
        rows.append({"method": row["method"], "pairs": row["data"]} | dict(zip(columns, numbers, strict=True)))
    for run, method in {**results.methods, results.baseline: None}.items():
        rows_of_run = results.rows[results.rows["run"] == run]
        ours = rows_of_run[rows_of_run["own"] if method else rows_of_run["unit"] == "pixel"]
        miou = ours.pivot(index="seed", columns="benchmark", values="miou").reindex(columns=paper["benchmarks"])
        miou["average"] = miou.mean(axis=1, skipna=False)
        title = f"{method_title(method) if method else DENSE_TITLES[run]}, ours, by {next(iter(ours['unit']), 'pixel')}s"
        rows.append({"method": f"**{title}**", "pairs": "this study's" if method else "none"} | {c: mean_std(miou[c]) for c in columns})
    return pd.DataFrame(rows)


def averaged_over(results, group, paper):
    """A sentence that names the benchmarks behind our averages of a group and the paper's. paper: its benchmarks."""
    ours = list(dict.fromkeys(results.rows.loc[results.rows["group"] == group, "benchmark"]))
    names = [", ".join(f"`{name}`" for name in of_one) or "no benchmark" for of_one in (ours, paper)]
    comparable = "the same benchmarks" if set(ours) == set(paper) else "other benchmarks, so that the two are not comparable"
    return f"{group.capitalize()}, ours are averages over {names[0]}, the paper's over {names[1]}: {comparable}."


def beside(key, paper, ours):
    """The paper's Table 3 or 4 (rows of paper/tables.yaml) with our numbers: one row per value of key. ours: {value: (averages, run)}."""
    theirs, rows = {row[key]: row for row in paper}, []
    for value in dict.fromkeys([*theirs, *ours]):
        row = {key: value}
        for group in GROUPS:
            row[f"{group}, ours"] = mean_std(by_seed(*ours[value], group)) if value in ours else NOT_RUN
            row[f"{group}, paper"] = f"{theirs[value][group]:.1f}" if value in theirs else ""
        rows.append(row)
    return pd.DataFrame(rows)
