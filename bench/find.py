"""`python -m bench.find STORE --run …`: find beside its peers, in one go. Writes find.json, and prints tables.

STORE has a train and a test split of many classes with super-classes. cleanlab is an extra: `pip install '.[bench]'`.
"""

import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from bench.audits import KINDS, audits
from bench.folders import RATE, features_of, oddities, split_of
from bench.tables import between
from common.errors import UserError
from common.files import readable_json, write_text
from common.machine import hardware, versions
from common.markdown import markdown_table
from common.store import FeatureStore

TITLES = {"audit": "Audits of 10,000 images", "odd": "Folders", "all": "All images"}
PARTS = tuple(TITLES)
PEERS = ("cleanlab", "scikit-learn")


@click.command()
@click.argument("store_path", required=False, type=click.Path(path_type=Path), metavar="STORE")
@click.option("--run", "runs", type=click.Path(path_type=Path), multiple=True, help="Run folders of trained heads.")
@click.option("--only", multiple=True, type=click.Choice(PARTS), help="These parts; others stay.  [default: all]")
@click.option("--seeds", type=click.IntRange(1), default=2, show_default=True, help="Times that labels are changed.")
@click.option("--draws", type=click.IntRange(1), default=5, show_default=True, help="Times that folders are drawn.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("bench"), show_default=True, help="A folder.")
@click.option("--readme", type=click.Path(path_type=Path), help="Measure nothing: write OUT's report into its table.")
@click.option("--check", is_flag=True, help="With --readme: change nothing, exit code 1 where the table is another.")
def main(
    store_path: Path | None,
    runs: tuple[Path, ...],
    only: tuple[str, ...],
    seeds: int,
    draws: int,
    out: Path,
    readme: Path | None,
    check: bool,
) -> None:
    """Measure audits, folders with odd images, and an audit of all images of STORE."""
    path = out / "find.json"
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if readme:
        write_between(readme, tables(report), check)
        return
    if store_path is None:
        raise click.UsageError("give STORE, or --readme")
    store = FeatureStore.open(store_path)
    for part in only or PARTS:
        click.echo(f"{part} …", err=True)
        if part == "audit":
            found = audits(*split_of(store, "test"), superclass_of(store), seeds)
        else:
            found = oddities(store, runs, draws) if part == "odd" else all_images(store)
        report[part] = {**found, **_here(store)}
        write_text(path, readable_json(report))
    click.echo(tables(report))


def write_between(readme: Path, made: str, check: bool) -> None:
    """Put what was made between the marks of a text; with `check`, exit code 1 instead where it would change."""
    old = readme.read_text(encoding="utf-8")
    new = between(old, "find", made)
    if new != old:
        click.echo(f"{'stale' if check else 'rewritten'}: {readme}", err=True)
        if check:
            raise SystemExit(1)
        write_text(readme, new)


def superclass_of(store: FeatureStore) -> np.ndarray:
    """The super-class (C,) of each class. Raises UserError where the store knows none."""
    if not store.header["class_superclass"]:
        raise UserError(f"{store.path} knows no super-classes: give a store of CIFAR-100")
    return np.array(store.header["class_superclass"])


def all_images(store: FeatureStore) -> dict[str, Any]:
    """Every image of the store audited, in view 0: the time, and the conflicts among equal pictures."""
    import find

    started, used = time.perf_counter(), time.process_time()
    features, labels = features_of(store, np.arange(len(store.labels))), np.array(store.labels)
    found = find.audit(features, labels, class_names=store.class_names, digests=store.image_sha256)
    conflicts = {
        tuple(sorted((each.row, *each.duplicate_of)))
        for each in found.findings
        if each.kind == "duplicate" and each.probability == 1
    }
    return {
        "n": len(labels),
        "seconds": round(time.perf_counter() - started, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
        "conflicts": len(conflicts),
        "noise_rate": found.settings["noise_rate"],
        "flagged": found.threshold.flagged,
    }


def _here(store: FeatureStore) -> dict[str, Any]:
    """Where it was measured, with what."""
    import torch

    here = {"store": store.identity_sha256, "hardware": hardware(torch.device("cpu"))}
    return {**here, "versions": versions() | {name: _version(name) for name in PEERS}}


def _version(name: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def tables(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    parts: list[str] = []
    if "audit" in report:
        parts.append(_audit_table(report["audit"]))
    if "odd" in report:
        parts.append(_odd_table(report["odd"]))
    if "all" in report:
        each = report["all"]
        parts.append(
            f"{each['n']:,} images audited in {each['seconds']:.0f} s ({each['cpu_seconds']:.0f} s of processor time); "
            f"{each['conflicts']} pairs of equal pictures with different labels."
        )
    where: dict[str, list[str]] = {}
    for part in PARTS:
        if part in report:
            where.setdefault(_where(report[part]), []).append(TITLES[part])
    parts += [f"{' and '.join(names) if len(where) > 1 else 'Measured'} on {place}." for place, names in where.items()]
    return "\n\n".join(parts)


def _where(measured: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {measured['versions'][name]}" for name in (*PEERS, "torch", "numpy"))
    threads = measured["hardware"]["threads"]
    return f"{measured['hardware']['cpu']}, {threads} thread{'s' * (threads > 1)}; {versions}"


def _audit_table(found: dict[str, Any]) -> str:
    rows = [["labels changed to", "way", "AP", "precision at k", "flagged", "precision", "recall", "time"]]
    for kind in KINDS:
        of_kind = [row for row in found["rows"] if row["kind"] == kind]
        for way in dict.fromkeys(row["way"] for row in of_kind):
            same = [row for row in of_kind if row["way"] == way]
            cells = [_spread([row[key] for row in same]) for key in ("average_precision", "precision_at_k")]
            time_taken = f"{statistics.mean(row['seconds'] for row in same):.0f} s"
            for name, asked in _at_rates(way, same):
                rows.append([kind, name, *cells, *_flagged(asked), time_taken])
    about = f"{found['n']:,} images, 5 % of labels changed, {found['seeds']} times."
    left_out = [f"Left out: {name} ({reason})." for name, reason in found["left_out"].items()]
    return "\n\n".join([markdown_table(rows), " ".join([about, *left_out])])


def _at_rates(way: str, same: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    if "at_rates" not in same[0]:
        return [(way, list(same))]
    return [
        (f"{way}, false-discovery rate {rate}", [row["at_rates"][rate] for row in same]) for rate in same[0]["at_rates"]
    ]


def _flagged(rows: Sequence[dict[str, Any]]) -> list[str]:
    if "flagged" not in rows[0]:
        return ["–"] * 3
    precision = [row["precision"] for row in rows if row["precision"] is not None]
    flagged = f"{statistics.mean(row['flagged'] for row in rows):,.0f}"
    return [flagged, _spread(precision) if precision else "–", _spread([row["recall"] for row in rows])]


def _odd_table(found: dict[str, Any]) -> str:
    rows = [["way", "folders", "AP, 1 foreign", "AP, 5 foreign", "alarms, clean", "found, 1", "found, 5", "right"]]
    for each in found["rows"]:
        scores = [_spread(each[number]["average_precision"]) for number in ("1", "5")]
        said = [each[number].get("said_odd") for number in ("0", "1", "5")] + [each.get("right")]
        shares = ["–" if share is None else f"{100 * share:.0f} %" for share in said]
        rows.append([each["way"], str(each["classes"]), *scores, *shares])
    about = (
        "A folder is the 100 test images of a class and the foreign ones; foreign ones drawn "
        f"{found['draws']} times. Alarms and finds: folders in which something is said to be odd. Right: the share of "
        f"foreign images among the flagged ones, half of the folders being clean; the rate asked for is {RATE}."
    )
    return f"{markdown_table(rows)}\n\n{about}"


def _spread(values: Sequence[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


if __name__ == "__main__":
    main()
