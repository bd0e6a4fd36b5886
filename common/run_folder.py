"""A run is a folder: config, metrics, checkpoint, report, pictures, and DONE, written last."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.files import readable_json, write_text


@dataclass(frozen=True)
class RunFolder:
    """The files of one run; each of them is written atomically."""

    path: Path

    @property
    def config(self) -> Path:
        """The config really used, TOML."""
        return self.path / "config.toml"

    @property
    def metrics(self) -> Path:
        """One JSON record an epoch."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The best head, and in an unfinished run what is needed to go on; readable with `weights_only=True`."""
        return self.path / "checkpoint.pt"

    @property
    def report(self) -> Path:
        """The result, JSON."""
        return self.path / "report.json"

    @property
    def is_done(self) -> bool:
        """Whether the run is complete."""
        return (self.path / "DONE").is_file()

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Replace metrics.jsonl by the records of `history`."""
        write_text(self.metrics, "".join(json.dumps(record) + "\n" for record in history))

    def write_report(self, report: dict[str, Any]) -> None:
        """Write report.json."""
        write_text(self.report, readable_json(report))

    def read_report(self) -> dict[str, Any]:
        """The content of report.json."""
        return json.loads(self.report.read_text(encoding="utf-8"))

    def mark_done(self) -> None:
        """Say that everything else is in place."""
        write_text(self.path / "DONE", "")
