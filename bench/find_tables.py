"""The report of `bench.find` as Markdown."""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

from common.markdown import markdown_table

PEERS = ("cleanlab", "scikit-learn")
Row = dict[str, Any]


def tables(report: dict[str, Any]) -> str:
    """The tables of all parts that a report has."""
    parts: list[str] = []
    for name, make in MAKERS.items():
        if part := report.get(name):
            where = f"{part['hardware']['cpu']}, {part['hardware']['threads']} thread(s)"
            versions = ", ".join(f"{each} {part['versions'][each]}" for each in (*PEERS, "torch", "numpy"))
            parts += [make(part), f"{part['draws']} draws; measured on {where}; {versions}."]
    return "\n\n".join(parts)


def _foreign(part: Row) -> str:
    keys = ("set", "backbone", "way")
    rows = [[*keys, *(f"AP, {100 * share:g} %" for share in _values(part, "share")), "precision, 2 %", "recall, 2 %"]]
    for key, same in _grouped(part["rows"], keys):
        shares = [[row for row in same if row["share"] == share] for share in _values(part, "share")]
        middle = [row for row in same if row["share"] == 0.02]
        rows.append([*key, *(_mean(each, "average_precision") for each in shares), *_flags(middle)])
    return f"**Foreign pictures among others.** Flagged at a rate of 0.1.\n\n{markdown_table(rows)}"


def _labels(part: Row) -> str:
    keys = ("set", "backbone", "to", "way")
    rows = [["set", "backbone", "changed to", "way", "AP", "precision", "recall", "seconds"]]
    for key, same in _grouped(part["rows"], keys):
        rows.append([*key, _mean(same, "average_precision"), *_flags(same), _mean(same, "seconds", "{:.1f}")])
    return f"**Wrong labels.** 5 % were changed; flagged at a rate of 0.1.\n\n{markdown_table(rows)}"


def _folders(part: Row) -> str:
    keys = ("set", "backbone", "size", "way")
    numbers = ("average_precision_1", "average_precision_5", "alarms", "noticed_1", "noticed_5", "right")
    rows = [[*keys, "AP, 1 foreign", "AP, 5 foreign", "alarms, clean", "noticed, 1", "noticed, 5", "right"]]
    for key, same in _grouped(part["rows"], keys):
        rows.append([*map(str, key), *(_mean(same, name, "{:.2f}") for name in numbers)])
    about = (
        "Alarms: the share of clean folders in which something is flagged. Noticed: the share of folders in which a "
        "foreign picture is flagged. Right: the share of foreign pictures among the flagged ones, in folders that have "
        "some. The rate is 0.1."
    )
    return f"**Folders of one class.** {about}\n\n{markdown_table(rows)}"


def _growth(part: Row) -> str:
    rows = [["images of 100 classes, 512 features", "seconds", "GB of memory"]]
    rows += [[f"{row['n']:,}", f"{row['seconds']:.0f}", f"{row['gigabytes']:.1f}"] for row in part["rows"]]
    return f"**Growth of an audit.**\n\n{markdown_table(rows)}"


MAKERS: dict[str, Callable[[Row], str]] = {
    "foreign": _foreign,
    "labels": _labels,
    "folders": _folders,
    "growth": _growth,
}


def _values(part: Row, key: str) -> list[Any]:
    return sorted({row[key] for row in part["rows"]})


def _grouped(rows: Sequence[Row], keys: Sequence[str]) -> list[tuple[tuple[Any, ...], list[Row]]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return list(groups.items())


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
