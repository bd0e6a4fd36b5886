"""Data sets of Hugging Face `datasets`: a folder that they read or have saved, or a name on the hub."""

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from common.errors import UserError, import_optional, is_scarce, unknown_name
from common.files import sha256_text
from common.images import UnreadableImage, read_image
from common.progress import is_quiet
from extract.folders import VALIDATION, stamps_digest, unique_class_names
from extract.sources import UNLABELLED, ImageSource, Reading, split_by_class

ON_THE_HUB = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?(:[\w.-]+)?")  # NAME, OWNER/NAME, either with :CONFIG
VALUES = re.compile(r"u?int\d+|bool|(large_)?string")  # types of a column that may hold labels
BATCH = 1000  # rows looked at together


class HuggingFace:
    """The source "hf": --root is a folder, or a name on the hub, which is fetched into the cache of `datasets`.

    The splits train and test are taken, validation for test where there is none; a single split is split by class.
    """

    own_files = True

    def open(self, root: Path, reading: Reading) -> ImageSource:
        library = _import_library()
        loaded = _load(library, root)
        features = next(iter(loaded.values())).features
        image_column = _image_column(root, features, library.Image, reading.image_column)
        label_column = _label_column(root, features, library.ClassLabel, reading.label_column)
        class_names, labels = _labels(root, loaded, label_column)
        chosen, notes = _choose_splits(root, [name for name in loaded if (labels[name] >= 0).any()], label_column)
        if reading.test_fraction is not None and (len(chosen) == 2 or not label_column):
            raise UserError(f"--test-fraction splits labelled images that have one split, not {root}: leave it out")
        parts = [_without_decoding(library, root, loaded[name], image_column) for name in chosen]
        files_of = [_file_names(part, image_column, root) for part in parts]
        table = library.concatenate_datasets(parts)
        of_part = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        names = [
            name
            for split, part, files in zip(chosen, parts, files_of, strict=True)
            for name in files or [f"{split}/{row:05d}" for row in range(len(part))]
        ]
        every = np.concatenate([labels[name] for name in chosen])
        rows = np.flatnonzero(every >= 0)
        left_out = [(names[row], "without a label") for row in np.flatnonzero(every < 0)]
        names, every = [names[row] for row in rows], every[rows]
        is_test = (of_part[rows] == 1) & bool(label_column)
        if label_column and len(chosen) == 1:
            is_test, note = split_by_class(every, class_names, reading.test_fraction)
            notes.append(note)
        files = reading.files(root)

        def image(i: int) -> np.ndarray:
            encoded = table[int(rows[i])][image_column] or {}
            if encoded.get("bytes") is not None:
                return files.read(names[i], encoded["bytes"])
            if not encoded.get("path"):
                raise UnreadableImage(root / names[i], "there is none in this row")
            return read_image(Path(encoded["path"]), files.max_pixels, files.least_side)

        files_or_none = files if all(files_of) else None
        return ImageSource(str(root), class_names, every, is_test, image, names, left_out, notes, files_or_none)

    def fingerprint(self, root: Path) -> str:
        if root.exists():
            return stamps_digest(root)
        # By the files in the cache; the hub is not asked for a newer version
        cached = Path(_import_library().config.HF_DATASETS_CACHE) / str(root).partition(":")[0].replace("/", "___")
        return sha256_text(f"{root} {stamps_digest(cached)}")


def _import_library() -> ModuleType:
    return import_optional("datasets", "give --dataset imagefolder or csv")


def _load(library: ModuleType, root: Path) -> dict[str, Any]:
    """The splits of a data set, each a `datasets.Dataset`. Raises UserError where it cannot be loaded."""
    if not root.is_dir() and (root.exists() or not ON_THE_HUB.fullmatch(str(root))):
        raise UserError(f"{root} is no folder, and no name on the hub: give --dataset hf: a folder, or OWNER/NAME")
    name, _, config = str(root).partition(":")
    if is_quiet():
        library.disable_progress_bars()
    try:
        # Only the path of the store may be on stdout
        with contextlib.redirect_stdout(sys.stderr):
            if not root.is_dir():
                loaded = library.load_dataset(name, config or None)
            elif any((root / mark).is_file() for mark in ("dataset_dict.json", "state.json")):
                loaded = library.load_from_disk(str(root))
            else:
                # The library names a data set after its folder, which "." has no name for
                loaded = library.load_dataset(os.path.abspath(root))  # noqa: PTH100
    except Exception as error:  # the library raises errors of any kind
        if is_scarce(error):
            raise
        reason = (str(error) or type(error).__name__).strip().split("\n", 1)[0]
        place, advice = f"there is no folder {root}, and the data set of the hub", "check the name"
        if root.is_dir():
            place, advice = f"the folder {root}", "give one of images, of Parquet files, or of `save_to_disk`"
        raise UserError(f"{place} cannot be loaded by `datasets` ({reason[:300]}): {advice}") from error
    splits = {str(split): part for split, part in loaded.items()} if isinstance(loaded, dict) else {"train": loaded}
    if not (splits := {split: part for split, part in splits.items() if len(part)}):
        raise UserError(f"{root} has no rows: give --dataset hf: a data set of images")
    first, *others = splits.values()
    if any(part.features != first.features for part in others):
        raise UserError(
            f"the splits of {root} differ in their columns or classes ({', '.join(splits)}): make them equal"
        )
    return splits


def _image_column(root: Path, features: Any, image_type: type, wanted: str | None) -> str:
    columns = _columns(root, features, image_type, wanted)
    if len(columns) != 1:
        some = (
            f"several image columns ({', '.join(columns)})" if columns else f"no image column ({', '.join(features)})"
        )
        raise UserError(f"{root} has {some}: name one with --image-column")
    return columns[0]


def _label_column(root: Path, features: Any, label_type: type, wanted: str | None) -> str | None:
    """The column of labels, None where there is none."""
    columns = _columns(root, features, label_type, wanted)
    if len(columns) > 1:
        raise UserError(f"{root} has several columns of labels ({', '.join(columns)}): name one with --label-column")
    column = columns[0] if columns else "label"
    if column not in features:
        return None
    kind = str(getattr(features[column], "dtype", ""))
    if not isinstance(features[column], label_type) and not VALUES.fullmatch(kind):
        raise UserError(f"the column {column} of {root} holds no labels ({kind}): name one with --label-column")
    return column


def _columns(root: Path, features: Any, kind: type, wanted: str | None) -> list[str]:
    """The column that the user names; or else all columns of a type."""
    if wanted is None:
        return [name for name, feature in features.items() if isinstance(feature, kind)]
    if wanted not in features:
        raise unknown_name(f"column of {root}", wanted, features)
    return [wanted]


def _labels(root: Path, splits: dict[str, Any], column: str | None) -> tuple[list[str], dict[str, np.ndarray]]:
    """The class names, and for each split the labels (n,) int64: -1 where there is none, 0 where there is no column."""
    if column is None:
        return [UNLABELLED], {name: np.zeros(len(part), np.int64) for name, part in splits.items()}
    values = {name: part.select_columns([column])[:][column] for name, part in splits.items()}
    if known := getattr(next(iter(splits.values())).features[column], "names", None):
        numbers = {None: -1}
    else:
        known = sorted({value for part in values.values() for value in part if value is not None})
        numbers = {None: -1, **{value: label for label, value in enumerate(known)}}
    labels = {name: np.array([numbers.get(value, value) for value in part], np.int64) for name, part in values.items()}
    if not any((part >= 0).any() for part in labels.values()):
        raise UserError(f"the column {column} of {root} has no label: name another one with --label-column")
    return unique_class_names([str(name) for name in known]), labels


def _choose_splits(root: Path, names: Sequence[str], label_column: str | None) -> tuple[list[str], list[str]]:
    """The splits to train and to test on, or those to be joined; and notes."""
    if label_column is None:
        return list(names), [f"{root} has no column of labels: it can be looked at with find"]
    test = next((name for name in ("test", *VALIDATION) if name in names), None)
    if "train" in names:
        chosen = ["train", test] if test else ["train"]
    elif len(names) == 1:
        chosen = list(names)
    else:
        raise UserError(f"{root} has the splits {', '.join(names)}, and none of them is train: rename one")
    unused = [name for name in names if name not in chosen]
    notes = [f"{root} has no test split with labels: {test} is the test split"] if test not in (None, "test") else []
    return chosen, notes + ([f"split {', '.join(unused)} of {root} left out"] if unused else [])


def _without_decoding(library: ModuleType, root: Path, part: Any, column: str) -> Any:
    """The image column alone; its rows are {"bytes": of the file or None, "path": str or None}, or None."""
    try:
        return part.select_columns([column]).cast_column(column, library.Image(decode=False))
    except Exception as error:
        if is_scarce(error):
            raise
        kind = getattr(part.features[column], "dtype", type(part.features[column]).__name__)
        raise UserError(
            f"the column {column} of {root} holds no images ({kind}): name one with --image-column"
        ) from error


def _file_names(part: Any, column: str, root: Path) -> list[str] | None:
    """The names of the files below `root` that the images of a split are, None where they are none."""
    prefix, names = os.path.join(os.path.abspath(root), ""), []  # noqa: PTH100, PTH118 (a million files)
    for batch in part.iter(BATCH):
        for encoded in batch[column]:
            path = (encoded or {}).get("path") or ""
            if not path.startswith(prefix) or encoded["bytes"] is not None:
                return None
            names.append(path[len(prefix) :].replace(os.sep, "/"))
    return names
