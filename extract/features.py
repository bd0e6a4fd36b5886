"""From a request to its feature store: the existing one, or a new one, which `extract.pipeline` makes.

Nothing heavy is imported here, so that "up to date" is answered at once.
"""

from pathlib import Path
from typing import Any

from common.errors import UserError
from common.store import DamagedStore, FeatureStore, ForeignStore, MissingStore, NewerStore, OlderStore, StoreError
from common.store_partial import clear_up, read_progress
from extract.request import Request


def features(root: Path | str, store: Path | str, dataset: str = "imagefolder", **options: Any) -> FeatureStore:
    """The feature store of the images at `root`, made at `store` now, or the one that is there for the same request.

    options: those of `Request`, such as backbone="resnet50" or on_error="skip". Raises UserError as `find_or_make`.
    """
    return find_or_make(Request(dataset=dataset, root=Path(root), **options), Path(store))[0]


def find_or_make(request: Request, target: Path) -> tuple[FeatureStore, str]:
    """The store of a request at `target`, made now if need be; and a line that says what was done.

    Raises UserError for bad input, when `target` holds features of something else and must not be overwritten, and as
    `extract.pipeline.extract` does.
    """
    store = store_at(target, request.overwrite)
    # A request has the sizes and times of the files, so nothing needs to be decoded
    if store is not None and store.header["provenance"]["request"] == request.as_json():
        clear_up(store)
        return store, f"up to date: {target}"
    from extract.pipeline import make_features  # here, because torch takes seconds to start

    store, line = make_features(request, target, None if request.overwrite else store)
    return store, line or store_status(target)[1]


def store_at(path: Path, overwrite: bool) -> FeatureStore | None:
    """The store at a path; None where there is none, or no sound one and it may be overwritten.

    Raises UserError for any other file, and for one that cannot be read.
    """
    try:
        return FeatureStore.open(path)
    except MissingStore:
        return None
    except (DamagedStore, OlderStore) as error:
        if overwrite:
            return None
        raise UserError(f"{error.message} (--overwrite replaces it)") from error
    except (ForeignStore, NewerStore) as error:
        if overwrite and path.is_file():
            return None
        raise UserError(f"{error.message}, or choose another --store: this file is not touched") from error


def store_status(path: Path) -> tuple[str, str]:
    """One word for what is at a path, and a sentence."""
    try:
        opened = FeatureStore.open(path)
    except StoreError as error:
        progress = read_progress(path) if isinstance(error, MissingStore) else None
        if progress is None:
            return error.word, error.message
        return "partial", f"{progress[0]:,} of {progress[1]:,} images; run the same command again to resume"
    views, n, feature_dim = opened.places["features"].shape
    return "complete", f"{n:,} images × {views} view(s) × {feature_dim}, identity {opened.identity_sha256[:16]}"
