"""The generated parts of the experiment log: groups of runs → Markdown, and charts beside it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from train import charts
from train.comparison import difference, duration, holm, interval, mean_and_std, require_same_sets, table
from train.runs import Group

Groups = Sequence[Group]


def comparison(groups: Groups, folder: Path | None) -> str:
    """The ranking on the test sets, and its chart."""
    if folder:
        charts.draw_comparison(groups, folder / "comparison.png")
    return f"![Test top-1 of the methods with 95 % intervals](comparison.png)\n\n{table(groups)}"


def ranking(groups: Groups, folder: Path | None) -> str:
    """The ranking on the test sets."""
    return table(groups)


def hard(groups: Groups, folder: Path | None) -> str:
    """The ranking on the hard sets."""
    return table(groups, "hard")


def ablation(groups: Groups, folder: Path | None) -> str:
    """What each change makes of the first of the groups, on the test sets and on the hard ones."""
    base, *changed = groups
    require_same_sets(groups)
    rows = [["run", "seeds", "top-1 %", "change, points", "discordant sets", "p", "hard sets, top-1 %", "training"]]
    found = [difference(group, base) for group in changed]
    real = [True, *holm([each.p for each in found])]
    for group, gap, is_real in zip(groups, [None, *found], real, strict=True):
        cells = ["", "", ""]
        if gap:
            note = "" if is_real else " (not told apart)"
            cells = [f"{100 * gap.gained:+.2f}{note}", f"{gap.only_first} : {gap.only_second}", f"{gap.p:.2g}"]
        hard_top1 = mean_and_std(group.values("hard", "top1")) if "hard" in group.first else "–"
        seconds = duration(group.values("train_seconds").mean())
        top1 = f"**{mean_and_std(group.values('test', 'top1'))}**"
        rows.append([group.name, str(len(group.runs)), top1, *cells, hard_top1, seconds])
    return markdown(rows) + (
        f"\n\nEach row against {base.name}, on the same n = {base.first['test']['n']:,} sets: McNemar's exact test, "
        "the seed pair with the highest p; “not told apart”: p above 5 % after Holm's correction over the rows."
    )


def curves(groups: Groups, folder: Path | None) -> str:
    """Learning curves."""
    if folder:
        charts.draw_curves(groups, folder / "curves.png")
    return "![Validation top-1 over the epochs](curves.png)"


def pace(groups: Groups, folder: Path | None) -> str:
    """Accuracy against training time, and when 90, 92 and 94 % were reached."""
    if folder:
        charts.draw_pace(groups, folder / "pace.png")
    levels = (0.90, 0.92, 0.94, 0.95)
    rows = [["method", "seeds", *(f"seconds to {100 * level:.0f} %" for level in levels), "seconds in all"]]
    for group in groups:
        reached = [[_seconds_to(run.report["history"], level) for run in group.runs] for level in levels]
        cells = [f"{np.mean(s):.1f}" if all(s) else "not reached" for s in reached]  # type: ignore[arg-type]
        rows.append([group.name, str(len(group.runs)), *cells, f"{group.values('train_seconds').mean():.1f}"])
    return "\n\n".join(
        [
            "![Validation top-1 over the seconds of training](pace.png)",
            markdown(rows),
            "Seconds of training, without validation, until validation top-1 first reached the level, mean of seeds. "
            "The reference, Lippe's *UvA Deep Learning Tutorial 6* with a ResNet34's features on an RTX 3090: "
            + ", ".join(
                f"{top1:.2f} % test top-1 in {duration(seconds)} ({name})"
                for name, (top1, seconds) in charts.ANCHORS.items()
            )
            + ".",
        ]
    )


def summary(groups: Groups, folder: Path | None) -> str:
    """One row a group, also of different test sets."""
    rows = [
        [
            "method",
            "classes",
            "training sets",
            "seeds",
            "top-1 %",
            "95 % interval",
            "top-5 %",
            "average precision",
            "test sets n",
            "training",
        ]
    ]
    for group in groups:
        rows.append(
            [
                group.name,
                str(group.first["classes"]),
                f"{len(group.first['history']) * group.first['train_images']:,}",
                str(len(group.runs)),
                f"**{mean_and_std(group.values('test', 'top1'))}**",
                interval(group),
                f"{100 * group.values('test', 'top5').mean():.2f}",
                f"{group.values('test', 'average_precision').mean():.4f}",
                f"{group.first['test']['n']:,}",
                duration(group.values("train_seconds").mean()),
            ]
        )
    return markdown(rows)


def sizes(groups: Groups, folder: Path | None) -> str:
    """Top-1 by the size of the sets."""
    known = sorted({size for group in groups for size in group.first["beyond"]["set_size"]}, key=int)
    rows = [["method", *(f"S = {size}" for size in known)], ["chance", *(f"{100 / int(size):.1f}" for size in known)]]
    for group in groups:
        measured = group.first["beyond"]["set_size"]
        rows.append(
            [
                group.name,
                *(
                    mean_and_std(group.values("beyond", "set_size", size, "top1")) if size in measured else "–"
                    for size in known
                ),
            ]
        )
    n = max(measured["n"] for group in groups for measured in group.first["beyond"]["set_size"].values())
    return markdown(rows) + f"\n\nTop-1 % by set size S, n = {n:,} sets each; every head was trained at one size."


def anomalies(groups: Groups, folder: Path | None) -> str:
    """Sets with none, one, two and three anomalies."""
    ks = sorted(groups[0].first["beyond"]["anomalies"], key=int)
    rows = [
        [
            "method",
            *(f"AUROC, {k}" for k in ks),
            *(f"precision at {k}" for k in ks),
            "false alarms %",
            *(f"noticed %, {k}" for k in ks),
            "AUROC, 1 against 0",
            "accuracy %, 1 against 0",
        ]
    ]
    for group in groups:
        rows.append(
            [
                group.name,
                *(f"{group.values('beyond', 'anomalies', k, 'auroc_within_sets').mean():.4f}" for k in ks),
                *(f"{group.values('beyond', 'anomalies', k, 'precision_at_k').mean():.4f}" for k in ks),
                *_detection(group, ks),
            ]
        )
    n = groups[0].first["beyond"]["anomalies"]["1"]["n"]
    return (
        markdown(rows)
        + f"\n\nk anomalies in a set, n = {n:,} sets each: AUROC of items within their set, precision of k highest. "
        "“No anomaly”: a set counts as clean while its highest score minus its median is below a threshold that 5 % of "
        "the clean validation sets pass; false alarms and sets noticed are of test sets. The last column takes the "
        "threshold that is best on validation, where half of the sets are clean."
    )


def _detection(group: Group, ks: Sequence[str]) -> list[str]:
    none = "beyond", "none"
    if group.first["beyond"]["none"] is None:  # classes too small for sets without an anomaly
        return ["–"] * (len(ks) + 3)
    return [
        f"{100 * group.values(*none, 'false_alarms').mean():.1f}",
        *(f"{100 * group.values(*none, 'detected', k).mean():.1f}" for k in ks),
        f"{group.values(*none, 'auroc', '1').mean():.4f}",
        f"{100 * group.values(*none, 'best_accuracy', 'accuracy').mean():.1f}",
    ]


def failures(groups: Groups, folder: Path | None) -> str:
    """Where the first of the groups fails: within super-classes and across, and the most confused pairs."""
    group, found = groups[0], groups[0].first["failures"]
    if folder and "matrix" in found:
        charts.draw_failures(group, folder / "failures.png")
    parts = []
    if "across" in found:
        rows = [["test sets", "n", "top-1 %", "95 % interval"]]
        for key, name in (("within_superclass", "within a super-class"), ("across", "across super-classes")):
            if not found[key]["n"]:
                continue
            low, high = found[key]["top1_interval"]
            top1 = group.values("failures", key, "top1")
            rows.append([name, f"{found[key]['n']:,}", mean_and_std(top1), f"{100 * low:.2f} – {100 * high:.2f}"])
        parts.append(markdown(rows))
    for key, name in (("by_set_class", "set class"), ("by_anomaly_class", "anomaly class")):
        worst = sorted(found[key].items(), key=lambda item: item[1])[:5]
        parts.append(
            f"Lowest top-1 by {name}: " + ", ".join(f"{label} {100 * top1:.0f} %" for label, top1 in worst) + "."
        )
    if found["worst_pairs"]:
        rows = [["most confused", "and", "sets", "missed"]]
        parts.append(markdown(rows + [[a, b, str(n), str(missed)] for a, b, n, missed in found["worst_pairs"]]))
        parts.append(f"Pairs of test and hard sets together, either being the anomaly; {group.runs[0].name}.")
    if "matrix" in found:
        parts.append("![Top-1 by super-class of the set and of the anomaly](failures.png)")
    return "\n\n".join(parts)


def attention(groups: Groups, folder: Path | None) -> str:
    """How much the inliers attend to the anomaly."""
    group, found = groups[0], groups[0].first["attention"]
    mass = group.values("attention", "mass_on_anomaly").mean(0)
    rows = [["layer", *(f"head {head + 1}" for head in range(mass.shape[1])), "mean"]]
    for number, layer in enumerate(mass, 1):
        rows.append([str(number), *(f"{value:.3f}" for value in layer), f"{layer.mean():.3f}"])
    return (
        markdown(rows)
        + f"\n\nAttention of the inliers to the anomaly, mean over {found['n']:,} test sets and {len(group.runs)} "
        f"seed(s) (heads of different seeds are not the same heads); uniform: 1/S = {found['uniform']:.3f}."
    )


def positions(groups: Groups, folder: Path | None) -> str:
    """Whether the anomaly's position in the evaluation sets is uniform."""
    from scipy.stats import chisquare

    rows, seen = [["sets", "n", "least frequent position", "most frequent", "χ² p"]], set()
    for group in groups:
        for sets in ("val", "test", "hard"):
            measured = group.first.get(sets)
            if measured and measured["sets_sha256"] not in seen:
                seen.add(measured["sets_sha256"])
                counts = measured["positions"]
                cells = [f"{measured['n']:,}", str(min(counts)), str(max(counts)), f"{chisquare(counts).pvalue:.2f}"]
                rows.append([f"{sets} `{measured['sets_sha256'][:12]}`", *cells])
    return markdown(rows)


def twins(groups: Groups, folder: Path | None) -> str:
    """Results with and without the test images that are in the training split, too."""
    rows = [["method", "top-1 %", "without twins %", "sets n", "without n"]]
    for group in groups:
        rows.append(
            [
                group.name,
                mean_and_std(group.values("test", "top1")),
                mean_and_std(group.values("without_twins", "top1")),
                f"{group.first['test']['n']:,}",
                f"{group.first['without_twins']['n']:,}",
            ]
        )
    images = groups[0].first["without_twins"]["images"]
    names = ", ".join(f"{label} {number}" for label, number in images)
    return markdown(rows) + f"\n\n{len(images)} test images are pixel for pixel in the training split, too: {names}."


def timeline(groups: Groups, folder: Path | None) -> str:
    """When the runs were finished, how many there are and how long they took."""
    reports = [run.report for group in groups for run in group.runs]
    finished = sorted(report["finished"] for report in reports)
    minutes = sum(report["seconds"] for report in reports) / 60
    span = f"{finished[0]} to {finished[-1]}: {len(reports)} runs, {minutes:.0f} min of work"
    return f"{span}. {provenance(groups, folder)}"


def provenance(groups: Groups, folder: Path | None) -> str:
    """The weights, the machine and the versions behind the runs."""

    def all_of(table: str, key: str, digits: int | None = None) -> str:
        return ", ".join(sorted({str(run.report[table][key])[:digits] for group in groups for run in group.runs}))

    return (
        f"{all_of('store', 'backbone')} at {all_of('store', 'image_size')} pixels, weights of SHA-256 "
        f"{all_of('store', 'weights_sha256', 8)}…; {all_of('hardware', 'cpu')}, {all_of('hardware', 'device')}, "
        f"{all_of('hardware', 'threads')} thread(s) a run; torch {all_of('versions', 'torch')}, torchvision "
        f"{all_of('versions', 'torchvision')}, numpy {all_of('versions', 'numpy')}, "
        f"Python {all_of('versions', 'python')}."
    )


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """A table, its first row being the head; all columns but the first are flushed right."""
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, "|---|" + "---:|" * (len(rows[0]) - 1), *body])


def _seconds_to(history: Sequence[dict], level: float) -> float | None:
    """Seconds of training until validation top-1 first reaches a level, or None."""
    seconds = 0.0
    for record in history:
        seconds += record["train_seconds"]
        if record["val_top1"] >= level:
            return seconds
    return None


BLOCKS: dict[str, Callable[[Groups, Path | None], str]] = {
    function.__name__: function
    for function in (
        comparison,
        ranking,
        hard,
        ablation,
        curves,
        pace,
        summary,
        sizes,
        anomalies,
        failures,
        attention,
        positions,
        twins,
        timeline,
        provenance,
    )
}
