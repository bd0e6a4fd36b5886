"""The generated parts of the experiment log: each public function here makes one of groups of runs, in Markdown.

Some show a chart of their own name, which `train.log.charts` draws.
"""

from collections.abc import Callable

import numpy as np
from scipy.stats import chisquare

from common.errors import UserError
from common.markdown import markdown_table
from train.log.charts import ANCHORS
from train.log.columns import Column, Groups, format_duration, format_mean, format_range, make_gap_columns, table
from train.log.runs import Group, join_values
from train.log.significance import differences, rank, require_same_sets
from train.report.schema import Store

TESTED = (
    "Each row is compared with {} on the same sets by McNemar's exact test; of several seeds, the pair with the "
    "highest p counts. “Not told apart” means a p above 5 % after Holm's correction."
)


def comparison(groups: Groups) -> str:
    """The ranking on the test sets, and its chart."""
    return f"![Test top-1 of the methods with 95 % intervals](comparison.png)\n\n{ranking(groups)}"


def ranking(groups: Groups, sets: str = "test") -> str:
    """The groups from the best down, and a sentence on which neighbours cannot be told apart."""
    order = rank(groups, sets)
    groups, gaps = [group for group, _ in order], [gap for _, gap in order]
    quality = ["top-1 %", "95 % interval", "top-5 %", "average precision", "AUROC", "training"]
    changes = make_gap_columns(groups, gaps, "above the next, points")
    pairs = zip(groups, groups[1:], gaps, strict=False)
    same = [f"{a.name} and {b.name}" for a, b, gap in pairs if gap and not gap.real]
    verdict = f" Not told apart from each other: {'; '.join(same)}." if same else " Each is really above the next."
    digests = ", ".join(f"`{digest[:12]}`" for digest in sorted(groups[0].hashes(sets)))
    return table(groups, ["method", "parameters", "seeds", *quality, *changes], sets) + (
        f"\n\nn = {groups[0].measured(sets)[0].n:,} {sets} sets each (sets {digests}). Top-1 is the mean ± standard "
        f"deviation over the seeds, with Wilson's interval of the mean. {TESTED.format('the next one')}"
        f"{verdict if len(groups) > 1 else ''}"
    )


def hard(groups: Groups) -> str:
    """The ranking on the hard sets."""
    return ranking(groups, "hard")


def ablation(groups: Groups) -> str:
    """What each change makes of the first of the groups, on the test sets and on the hard ones."""
    base, *changed = groups
    require_same_sets(groups)
    changes = make_gap_columns(groups, [None, *differences([(group, base) for group in changed])], "change, points")
    text = table(groups, ["method", "seeds", "top-1 %", *changes, "hard sets, top-1 %", "training"])
    return f"{text}\n\nn = {base.first.test.n:,} test sets each. {TESTED.format(base.name)}"


def summary(groups: Groups) -> str:
    """One row a group, also of different test sets."""
    quality = ["top-1 %", "95 % interval", "top-5 %", "average precision"]
    return table(groups, ["method", "classes", "training sets", "seeds", *quality, "test sets n", "training"])


def results(groups: Groups) -> str:
    """The summary in brief."""
    return table(groups, ["method", "classes", "seeds", "top-1 %", "95 % interval", "training"])


def curves(groups: Groups) -> str:
    """Learning curves."""
    return "![Validation top-1 over the epochs](curves.png)"


def pace(groups: Groups) -> str:
    """Accuracy against training time, and when 90, 92, 94 and 95 % were reached."""

    def reached(level: float) -> Column:
        def cell(group: Group) -> str:
            seconds = group.values(lambda report: report.seconds_to(level))  # nan where it was not reached
            return "not reached" if np.isnan(seconds).any() else f"{seconds.mean():.1f}"

        return f"seconds to {100 * level:.0f} %", cell

    in_all = "seconds in all", lambda group: f"{group.mean(lambda report: report.train_seconds):.1f}"
    text = table(groups, ["method", "seeds", "machine", *map(reached, (0.90, 0.92, 0.94, 0.95)), in_all])
    anchors = [
        f"{top1:.2f} % test top-1 in {format_duration(seconds)} ({name})" for name, (top1, seconds) in ANCHORS.items()
    ]
    return (
        f"![Validation top-1 over the seconds of training](pace.png)\n\n{text}\n\n"
        "Seconds of training, without validation, until validation top-1 first reached the level; mean of the seeds. "
        "The reference is Lippe's *UvA Deep Learning Tutorial 6* with a ResNet34's features on an RTX 3090: "
        f"{', '.join(anchors)}."
    )


def sizes(groups: Groups) -> str:
    """Top-1 by the size of the sets."""
    measured = [result for group in groups for result in group.first.other_sets.set_size.items()]
    known = sorted({size for size, _ in measured}, key=int)

    def top1(size: str) -> Column:
        def cell(group: Group) -> str:
            if size not in group.first.other_sets.set_size:
                return "–"
            return format_mean(group.values(lambda report: report.other_sets.set_size[size].top1))

        return f"S = {size}", cell

    chance = ["chance", *(f"{100 / int(size):.1f}" for size in known)]
    text = table(groups, ["method", *map(top1, known)], above=chance)
    n = max(result.n for _, result in measured)
    return f"{text}\n\nTop-1 % by set size S, n = {n:,} sets each; every head was trained at one size."


def anomalies(groups: Groups) -> str:
    """Sets with none, one, two and three anomalies."""
    ks = sorted(groups[0].first.other_sets.anomalies, key=int)

    def within_sets(head: str, of: Callable, k: str) -> Column:
        return f"{head} {k}", lambda group: f"{group.mean(lambda report: of(report.other_sets.anomalies[k])):.4f}"

    def detection(head: str, of: Callable, scale: float = 100, digits: int = 1) -> Column:
        def cell(group: Group) -> str:
            if group.first.other_sets.detection is None:  # classes too small for sets without an anomaly
                return "–"
            return f"{scale * group.mean(lambda report: of(report.other_sets.detection)):.{digits}f}"

        return head, cell

    columns = [
        *(within_sets("AUROC,", lambda result: result.auroc_within_sets, k) for k in ks),
        *(within_sets("precision at", lambda result: result.precision_at_k, k) for k in ks),
        detection("false alarms %", lambda result: result.false_alarms),
        *(detection(f"noticed %, {k}", lambda result, k=k: result.detected[k]) for k in ks),
        detection("AUROC, 1 against 0", lambda result: result.auroc["1"], 1, 4),
        detection("accuracy %, 1 against 0", lambda result: result.best_accuracy.accuracy),
    ]
    return (
        f"{table(groups, ['method', *columns])}\n\nk anomalies in a set, n = "
        f"{groups[0].first.other_sets.anomalies['1'].n:,} sets each: AUROC of items within their set, and precision of "
        "the k highest scores. A set counts as clean while its highest score minus its median, or, where validation "
        "sets are told better by it, the log-odds of any anomaly, is below a threshold that 5 % of the clean "
        "validation sets pass; false alarms and noticed sets are of the test. The last column "
        "takes the threshold that is best on validation, where half of the sets are clean."
    )


def failures(groups: Groups) -> str:
    """Where the first of the groups fails: within super-classes and across, and the most confused pairs."""
    group, result = groups[0], groups[0].first.failures
    parts = []
    if result.across:
        rows = [["test sets", "n", "top-1 %", "95 % interval"]]
        for key, name in (("within_superclass", "within a super-class"), ("across", "across super-classes")):
            first = getattr(result, key)
            if first.n:
                top1 = group.values(lambda report, key=key: getattr(report.failures, key).top1)  # type: ignore[misc]
                rows.append([name, f"{first.n:,}", format_mean(top1), format_range(first.top1_interval)])
        parts.append(markdown_table(rows))
    for by_class, name in ((result.by_set_class, "set class"), (result.by_anomaly_class, "anomaly class")):
        worst = sorted(by_class.items(), key=lambda item: item[1])[:5]
        named = ", ".join(f"{label} {100 * top1:.0f} %" for label, top1 in worst)
        parts.append(f"Lowest top-1 by {name}: {named}.")
    if result.worst_pairs:
        pairs = [[a, b, str(n), str(missed)] for a, b, n, missed in result.worst_pairs]
        parts.append(markdown_table([["most confused", "and", "sets", "missed"], *pairs]))
        parts.append(f"Pairs of test and hard sets together, either being the anomaly; {group.runs[0].name}.")
    if result.matrix:
        parts.append("![Top-1 by super-class of the set and of the anomaly](failures.png)")
    return "\n\n".join(parts)


def attention(groups: Groups) -> str:
    """How much the inliers attend to the anomaly."""
    group, result = groups[0], groups[0].first.attention
    if result is None:
        raise UserError(f"{group.name} has no attention among the items of a set: choose a run that has")
    mass = group.values(lambda report: report.attention and report.attention.mass_on_anomaly).mean(0)
    rows = [["layer", *(f"head {head + 1}" for head in range(mass.shape[1])), "mean"]]
    rows += [[str(n), *(f"{value:.3f}" for value in layer), f"{layer.mean():.3f}"] for n, layer in enumerate(mass, 1)]
    return (
        f"{markdown_table(rows)}\n\nAttention of the inliers to the anomaly, mean over {result.n:,} test sets and "
        f"{len(group.runs)} seed(s); heads of different seeds are not the same heads. Uniform attention would be "
        f"1/S = {result.uniform:.3f}."
    )


def positions(groups: Groups) -> str:
    """Whether the anomaly's position in the evaluation sets is uniform."""
    rows: dict[str, list[str]] = {}
    for group in groups:
        for sets in ("val", "test", "hard"):
            for result in group.measured(sets)[:1]:
                counts, name = result.positions, f"{sets} `{result.sets_sha256[:12]}`"
                p = f"{chisquare(counts).pvalue:.2f}"
                rows.setdefault(result.sets_sha256, [name, f"{result.n:,}", str(min(counts)), str(max(counts)), p])
    return markdown_table([["sets", "n", "least frequent position", "most frequent", "χ² p"], *rows.values()])


def twins(groups: Groups) -> str:
    """Results with and without the test images that are in the training split, too."""
    columns: list[Column] = [
        ("top-1 %", lambda group: format_mean(group.top1())),
        ("without twins %", lambda group: format_mean(group.values(lambda report: report.without_twins.top1))),
        ("without n", lambda group: f"{group.first.without_twins.n:,}"),
    ]
    images = groups[0].first.without_twins.images
    names = ", ".join(f"{label} {number}" for label, number in images)
    sentence = f"{len(images)} test images are pixel for pixel in the training split, too"
    return f"{table(groups, ['method', 'test sets n', *columns])}\n\n{sentence}{': ' * bool(names)}{names}."


def timeline(groups: Groups) -> str:
    """When the runs were finished, how many there are and how long they took."""
    reports = [run.report for group in groups for run in group.runs]
    finished = sorted(report.finished for report in reports)
    minutes = sum(report.seconds for report in reports) / 60
    span = f"{finished[0]} to {finished[-1]}: {len(reports)} runs, {minutes:.0f} min of work"
    return f"{span}. {provenance(groups)}"


def provenance(groups: Groups) -> str:
    """The weights, the machine and the versions behind the runs."""

    def version(name: str) -> str:
        return join_values(groups, lambda report: report.versions[name])

    def joined(of: Callable[[Store], str]) -> str:
        return join_values(groups, lambda report: " + ".join(map(of, report.store.parts)))

    return (
        f"{joined(lambda store: store.backbone)} at {joined(lambda store: str(store.image_size))} pixels, weights of "
        f"SHA-256 {joined(lambda store: store.weights_sha256[:8])}…; "
        f"{join_values(groups, lambda report: report.hardware.cpu)}, "
        f"{join_values(groups, lambda report: report.hardware.device)}, "
        f"{join_values(groups, lambda report: report.hardware.threads)} thread(s) a run; torch {version('torch')}, "
        f"torchvision {version('torchvision')}, numpy {version('numpy')}, Python {version('python')}."
    )


COMPARING = comparison, ranking, hard, ablation, summary, results, curves, pace, sizes, anomalies
DESCRIBING = failures, attention, positions, twins, timeline, provenance
BLOCKS: dict[str, Callable[[Groups], str]] = {block.__name__: block for block in (*COMPARING, *DESCRIBING)}
