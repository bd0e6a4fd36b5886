"""A run is a folder: config, metrics, checkpoint, report, pictures, and DONE, written last."""

import json
from pathlib import Path

import msgspec

from common.errors import UserError
from common.files import readable_json, sha256_file, write_text
from common.schema import load
from train.config import Config
from train.report.schema import Epoch, Report, read_report

PICTURES = ("curves.png", "attention.png", "mistakes.png")
FILES = ("config.toml", "metrics.jsonl", "report.json", "checkpoint.pt", *PICTURES)


class RunFolder:
    """The files of one run; each of them is written atomically."""

    def __init__(self, path: Path):
        self.path = path
        self.config = path / "config.toml"  # the config that was really used
        self.metrics = path / "metrics.jsonl"  # one JSON record per epoch
        # The best head; in an unfinished run also what is needed to resume. Readable with `weights_only=True`
        self.checkpoint = path / "checkpoint.pt"
        self.report = path / "report.json"
        self.done = path / "DONE"  # {"sha256": {file: digest}} in JSON, written last

    @property
    def is_done(self) -> bool:
        """Whether the run declares that it is complete."""
        return self.done.is_file()

    def is_complete(self) -> bool:
        """Whether it is, and all that DONE declares is there. Raises UserError as `find_missing`."""
        return self.is_done and not self.find_missing()

    def write_metrics(self, history: list[Epoch]) -> None:
        write_text(self.metrics, "".join(json.dumps(msgspec.to_builtins(record)) + "\n" for record in history))

    def mark_done(self) -> None:
        """Write DONE: all other files are in place, with these digests."""
        paths = [path for name in FILES if (path := self.path / name).is_file()]
        write_text(self.done, readable_json({"sha256": {path.name: sha256_file(path) for path in paths}}))

    def find_missing(self) -> list[str]:
        """Return the files that DONE declares and that are missing. Raises UserError for one that has changed."""
        declared = self._read_done()
        missing = [name for name in declared if not (self.path / name).is_file()]
        for name, digest in declared.items():
            if name not in missing and sha256_file(self.path / name) != digest:
                advice = "put it back, or move it away and run the training command again to make it anew"
                if name == "checkpoint.pt":
                    advice = (
                        "the report beside it is sound; put it back, or choose another --run to train the same head "
                        "again"
                    )
                raise UserError(
                    f"{self.path / name} is not what DONE declares: it was damaged or changed after the run was "
                    f"complete; {advice}"
                )
        if "checkpoint.pt" in missing:
            raise UserError(
                f"{self.path} has DONE but no checkpoint.pt: its head is lost; put the file back, or choose another "
                "--run to train the same head again"
            )
        return missing

    def read_finished_report(self) -> Report:
        """Read the report of a complete run. Raises UserError unless all files are as DONE declares."""
        for name in self.find_missing():
            raise UserError(
                f"{self.path} has DONE but no {name}: run the training command again to make it from the checkpoint"
            )
        return read_report(self.report)

    def read_config(self) -> Config:
        """Read config.toml; keys that an older version did not write get their defaults."""
        try:
            return load(Config, self.config)
        except UserError as error:
            raise UserError(f"{self.path} is not a run folder ({error.message}): choose another --run") from error

    def _read_done(self) -> dict[str, str]:
        try:
            declared = json.loads(self.done.read_text(encoding="utf-8"))["sha256"]
            if set(declared) <= set(FILES) and {"checkpoint.pt", "report.json"} <= set(declared):
                return declared
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        raise UserError(
            f"{self.done} is damaged: remove this file and run the training command again to complete the run"
        )
