"""The report of `bench.find` as Markdown."""

import statistics
from collections.abc import Sequence
from typing import Any

from common.markdown import markdown_table

PEERS = ("cleanlab", "scikit-learn")
Row = dict[str, Any]


def tables(report: dict[str, Any]) -> str:
    """The tables of all parts that a report has."""
    texts: list[str] = []
    for name, make in {"foreign": _foreign, "labels": _labels, "folders": _folders, "growth": _growth}.items():
        if part := report.get(name):
            where = f"{part['hardware']['cpu']}, {part['hardware']['threads']} thread(s)"
            versions = ", ".join(f"{each} {part['versions'][each]}" for each in (*PEERS, "torch", "numpy"))
            about, rows = make(part["rows"])
            texts += [about, markdown_table(rows), f"{part['draws']} draws; measured on {where}; {versions}."]
    return "\n\n".join(texts)


def _foreign(measured: list[Row]) -> tuple[str, list[list[str]]]:
    shares = sorted({row["share"] for row in measured})
    head = [*(f"AP, {100 * share:g} %" for share in shares), "precision, 2 %", "recall, 2 %"]
    rows = [["set", "backbone", "way", *head]]
    for key, group in _group(measured, ("set", "backbone", "way")):
        of_share = {share: [row for row in group if row["share"] == share] for share in shares}
        rows.append([*key, *(_mean(some, "average_precision") for some in of_share.values()), *_flags(of_share[0.02])])
    return "**Foreign pictures among others.** Flagged at a rate of 0.1.", rows


def _labels(measured: list[Row]) -> tuple[str, list[list[str]]]:
    rows = [["set", "backbone", "changed to", "way", "AP", "precision", "recall", "seconds"]]
    for key, group in _group(measured, ("set", "backbone", "to", "way")):
        rows.append([*key, _mean(group, "average_precision"), *_flags(group), _mean(group, "seconds", "{:.1f}")])
    return "**Wrong labels.** 5 % were changed; flagged at a rate of 0.1.", rows


def _folders(measured: list[Row]) -> tuple[str, list[list[str]]]:
    keys = ("set", "backbone", "size", "way")
    columns = {
        "AP, 1 foreign": "average_precision_1", "AP, 5 foreign": "average_precision_5", "alarms, clean": "alarms",
        "noticed, 1": "noticed_1", "noticed, 5": "noticed_5", "right": "right",
    }  # fmt: skip
    rows = [[*keys, *columns]]
    for key, group in _group(measured, keys):
        rows.append([*key, *(_mean(group, name, "{:.2f}") for name in columns.values())])
    about = (
        "Alarms: the share of clean folders in which something is flagged. Noticed: the share of folders in which a "
        "foreign picture is flagged. Right: the share of foreign pictures among the flagged ones, in folders that have "
        "some. The rate is 0.1."
    )
    return f"**Folders of one class.** {about}", rows


def _growth(measured: list[Row]) -> tuple[str, list[list[str]]]:
    rows = [["images of 100 classes, 512 features", "seconds", "GB of memory"]]
    rows += [[f"{row['n']:,}", f"{row['seconds']:.0f}", f"{row['gigabytes']:.1f}"] for row in measured]
    return "**Growth of an audit.**", rows


def _group(rows: Sequence[Row], keys: Sequence[str]) -> list[tuple[list[str], list[Row]]]:
    """The rows that agree in these keys, and what they agree in."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(str(row[key]) for key in keys), []).append(row)
    return [(list(key), group) for key, group in groups.items()]


def _mean(rows: Sequence[Row], key: str, form: str = "{:.3f}") -> str:
    values = [row[key] for row in rows if row.get(key) is not None]
    return form.format(statistics.mean(values)) if values else "–"


def _flags(rows: Sequence[Row]) -> list[str]:
    """Precision and recall of the flagged ones; precision over all draws together."""
    if not rows or "flagged" not in rows[0]:
        return ["–", "–"]
    flagged = sum(row["flagged"] for row in rows)
    right = sum(row["recall"] * row["bad"] for row in rows)
    return [f"{right / flagged:.2f}" if flagged else "–", _mean(rows, "recall", "{:.2f}")]
