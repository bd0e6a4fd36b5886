"""What is written down of a store under way: the plan that fixes its content, and the journal of its batches."""

import json
from pathlib import Path
from typing import Any

from common.files import canonical_json, sha256_text, write_text


def read_content(folder: Path) -> dict[str, Any]:
    """What plan.json says, {} where it is missing or not what was written."""
    try:
        sealed = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        content = sealed["content"]
        return content if sealed["sha256"] == sha256_text(canonical_json(content)) else {}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return {}


def write_content(folder: Path, content: dict[str, Any]) -> None:
    sealed = {"content": content, "sha256": sha256_text(canonical_json(content))}
    write_text(folder / "plan.json", canonical_json(sealed))


def read_journal(journal: Path, n: int, batch_size: int) -> dict[int, tuple[int, str]]:
    """The batches {start: (stop, digest)} that a journal notes; a line that is no batch of the plan is passed over."""
    found = {}
    try:
        lines = journal.read_bytes().splitlines()
    except OSError:
        return {}
    for line in lines:
        try:
            entry = json.loads(line)
            start, stop, digest = entry["start"], entry["stop"], entry["sha256"]
        except (ValueError, TypeError, KeyError, RecursionError):  # such as the line that a kill cut off
            continue
        if type(start) is int and start in range(0, n, batch_size) and stop == min(start + batch_size, n):
            found[start] = int(stop), digest
    return found


def journal_line(start: int, stop: int, digest: str) -> str:
    return canonical_json({"start": start, "stop": stop, "sha256": digest}) + "\n"
