"""The user's own images by a table: a CSV file with the columns path, label and, optionally, split."""

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import canonical_json, sha256_text
from extract.folders import VALIDATION, stamp_of, unique_class_names
from extract.sources import ImageSource, Reading, split_by_class

COLUMNS = "path,label or path,label,split"
DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Row:
    """A line of the table. split: "" where there is no such column."""

    line: int
    path: str
    label: str
    split: str


class Csv:
    """The source "csv": --root is the table; its paths are relative to the table's folder."""

    own_files = True

    def open(self, root: Path, reading: Reading) -> ImageSource:
        rows = sorted(read_table(root), key=lambda row: (row.label, row.path))
        rows, left_out = _without_missing(root, rows, reading)
        class_names = unique_class_names(sorted({row.label for row in rows}))
        number = {name: label for label, name in enumerate(class_names)}
        labels = np.array([number[row.label] for row in rows], np.int64)
        named_splits, notes = {row.split for row in rows}, []
        if named_splits <= {""}:
            is_test, note = split_by_class(labels, class_names, reading.test_fraction)
            notes.append(note)
        else:
            if reading.test_fraction is not None:
                raise UserError(f"{root} has a column split: leave --test-fraction out")
            test = "test" if "test" in named_splits else "val"
            if test == "test" and "val" in named_splits:
                notes.append(f"{sum(row.split == 'val' for row in rows)} rows of {root} with split val left out")
            used = [i for i, row in enumerate(rows) if row.split in ("train", test)]
            rows, labels = [rows[i] for i in used], labels[used]
            is_test = np.array([row.split == test for row in rows], bool)
        names = [row.path for row in rows]
        files = reading.files(root.parent)
        return ImageSource(
            str(root), class_names, labels, is_test, lambda i: files.read(names[i]), names, left_out, notes, files
        )

    def fingerprint(self, root: Path) -> str:
        stamps = [(row.path, *stamp_of(root.parent / row.path)) for row in read_table(root)]
        return sha256_text(root.read_text("utf-8-sig") + canonical_json(stamps))


def read_table(path: Path) -> list[Row]:
    """The rows of a table with a header. Raises UserError naming the line that is wrong."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(_rows(path, file))
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise UserError(f"cannot read the table {path} ({reason}): give --root (make: ROOT=) a CSV file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error}): save it as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path} is not a table ({error}): it needs the columns {COLUMNS}") from error
    if not rows:
        raise UserError(f"{path} has no rows: it needs one for each image, below the columns {COLUMNS}")
    seen: dict[str, Row] = {}
    for row in rows:
        name = os.path.normpath(row.path)  # ./a.png is a.png
        if name in seen:
            lines = f"{seen[name].line} and {row.line}"
            raise UserError(f"{path}: lines {lines} are of one image, {row.path}: remove one")
        seen[name] = row
    return rows


def _rows(path: Path, file) -> Iterator[Row]:
    header_line = file.readline()
    delimiter = max(DELIMITERS, key=header_line.count)
    header = [name.strip().lower() for name in next(csv.reader([header_line], delimiter=delimiter), [])]
    if set(header) not in ({"path", "label"}, {"path", "label", "split"}) or len(set(header)) != len(header):
        raise UserError(f'{path} must begin with the line {COLUMNS}, got "{header_line.strip()[:80]}"')
    table = csv.reader(file, delimiter=delimiter, strict=True)
    for cells in table:
        if not cells:
            continue
        where = f"{path}, line {table.line_num + 1}"
        if len(cells) != len(header):
            raise UserError(f"{where}: expected {len(header)} cells, found {len(cells)}; quote cells that have a comma")
        named = dict(zip(header, (cell.strip() for cell in cells), strict=True))
        if empty := [name for name, cell in named.items() if not cell]:
            raise UserError(f"{where}: the {empty[0]} is empty; fill it in or remove the line")
        split = named.get("split", "").lower()
        split = "val" if split in VALIDATION else split
        if "split" in named and split not in ("train", "test", "val"):
            raise UserError(f'{where}: unknown split "{named["split"]}": write train, test or val')
        yield Row(table.line_num + 1, os.path.normpath(named["path"]), named["label"], split)


def _without_missing(root: Path, rows: list[Row], reading: Reading) -> tuple[list[Row], list[tuple[str, str]]]:
    """The rows whose files exist, and the others as left out. Raises UserError for missing ones, unless skipped."""
    missing = [row for row in rows if not (root.parent / row.path).is_file()]
    if missing and reading.on_error == "fail":
        first = ", ".join(f"line {row.line} ({row.path})" for row in sorted(missing, key=lambda row: row.line)[:5])
        raise UserError(
            f"{root}: {len(missing)} of {len(rows)} images are not there, {first}{' …' if len(missing) > 5 else ''}; "
            "paths are relative to the table's folder; mend them, or skip them with --on-error skip "
            "(make: ON_ERROR=skip)"
        )
    gone = {row.path for row in missing}
    return [row for row in rows if row.path not in gone], [(row.path, "missing") for row in missing]
