"""The report of `bench.find` as Markdown: ways in rows, sets in columns."""

import statistics
from collections.abc import Callable, Sequence
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
            runs = "one run each" if name == "growth" else f"{part['draws']} draws"
            texts += [*make(part["rows"]), f"{runs}; measured on {where}; {versions}."]
    return "\n\n".join(texts)


def _foreign(measured: list[Row]) -> list[str]:
    shares = sorted({row["share"] for row in measured})
    share = 0.02
    return [
        "**Foreign pictures among others.** AP with " + ", ".join(f"{100 * each:g}" for each in shares) + " % of them:",
        _table(
            measured, ["way"], lambda rows: _list([_mean(rows, "average_precision", share=each) for each in shares])
        ),
        f"Precision and recall of what is flagged at a rate of 0.1, with {100 * share:g} %:",
        _table([row for row in measured if "flagged" in row and row["share"] == share], ["way"], _flags),
    ]


def _labels(measured: list[Row]) -> list[str]:
    keys = ["way", "changed to"]
    measured = [row | {"changed to": row["to"]} for row in measured]
    timed = [row for row in measured if row["way"] in ("find.audit", "logistic regression")]
    return [
        "**Wrong labels.** 5 % were changed. AP:",
        _table(measured, keys, lambda rows: _mean(rows, "average_precision")),
        "Precision and recall of what is flagged at a rate of 0.1:",
        _table([row for row in measured if "flagged" in row], keys, _flags),
        "Seconds; Datalab judges by the probabilities of the logistic regression:",
        _table(timed, keys, lambda rows: _mean(rows, "seconds", "{:.1f}")),
    ]


def _folders(measured: list[Row]) -> list[str]:
    keys = ["way", "size"]
    measured = sorted(measured, key=lambda row: row["size"])
    flagged = [row for row in measured if "alarms" in row]
    names = ("alarms", "noticed_1", "noticed_5", "right")
    return [
        "**Folders of one class.** AP with 1 foreign picture, and with 5:",
        _table(measured, keys, lambda rows: _list([_mean(rows, f"average_precision_{n}") for n in (1, 5)])),
        "What is flagged at a rate of 0.1: the share of clean folders with something flagged; of folders with a "
        "foreign picture flagged, of 1 and of 5; the share of foreign pictures among the flagged ones:",
        _table(flagged, keys, lambda rows: _list([_mean(rows, name) for name in names])),
    ]


def _growth(measured: list[Row]) -> list[str]:
    rows = [["images of 100 classes, 512 features", "seconds", "GB of memory"]]
    rows += [[f"{row['n']:,}", f"{row['seconds']:.0f}", f"{row['gigabytes']:.1f}"] for row in measured]
    return ["**Growth of an audit.**", markdown_table(rows)]


def _table(measured: Sequence[Row], keys: Sequence[str], cell: Callable[[list[Row]], str]) -> str:
    """A row for each value of `keys`, a column for each set and backbone; `cell` gets what was measured there."""
    columns = list(dict.fromkeys((row["set"], row["backbone"]) for row in measured))
    values = list(dict.fromkeys(tuple(str(row[key]) for key in keys) for row in measured))
    cells: dict[tuple, list[Row]] = {}
    for row in measured:
        cells.setdefault((*(str(row[key]) for key in keys), row["set"], row["backbone"]), []).append(row)
    head = [*keys, *(f"{name}, {backbone.rpartition(':')[2]}" for name, backbone in columns)]
    return markdown_table(
        [head, *([*value, *(cell(cells.get((*value, *at), [])) for at in columns)] for value in values)]
    )


def _mean(rows: Sequence[Row], key: str, form: str = "{:.2f}", **where: Any) -> str:
    values = [row[key] for row in rows if row.get(key) is not None and where.items() <= row.items()]
    return form.format(statistics.mean(values)) if values else "–"


def _flags(rows: Sequence[Row]) -> str:
    """Precision, over all draws together, and the mean recall."""
    if not rows:
        return "–"
    flagged = sum(row["flagged"] for row in rows)
    right = sum(row["recall"] * row["bad"] for row in rows)
    return _list([f"{right / flagged:.2f}" if flagged else "–", _mean(rows, "recall")])


def _list(texts: Sequence[str]) -> str:
    return "–" if set(texts) == {"–"} else " · ".join(texts)
