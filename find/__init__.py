"""Stage 3: find the odd image in a folder, and wrong labels in a data set, on cached features.

`find.odd(features)` and `find.audit(features, labels)` take arrays and give `find.findings.Findings`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from find.auditing import audit as audit
    from find.oddities import odd as odd

HOMES = {"audit": "find.auditing", "odd": "find.oddities"}
__all__ = ["audit", "odd"]


def __getattr__(name: str) -> Any:
    # Only when asked for: `--help` must not wait for torch
    import importlib

    if name in HOMES:
        return getattr(importlib.import_module(HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
