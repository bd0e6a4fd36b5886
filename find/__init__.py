"""Stage 3: find the odd image in a folder, and wrong labels in a data set, on cached features.

`find.odd(features)` and `find.audit(features, labels)` take arrays and give `find.findings.Findings`.
"""

import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from find.auditing import audit as audit
    from find.oddities import odd as odd

HOMES = {"audit": "find.auditing:audit", "odd": "find.oddities:odd"}
__all__ = ["audit", "odd"]


def __getattr__(name: str) -> Any:
    if name in HOMES:  # only when asked for: `--help` must not wait for torch
        return pkgutil.resolve_name(HOMES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
