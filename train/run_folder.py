"""A run is a folder: config, metrics, checkpoint, report, pictures, and DONE, written last."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from common.errors import UserError
from common.files import readable_json, sha256_file, write_bytes, write_text
from common.schema import from_dict, load
from train.config import Config
from train.experiment import require_same
from train.report.schema import Report, read_report

MADE_FROM_CHECKPOINT = ("config.toml", "metrics.jsonl", "report.json")
PICTURES = ("curves.png", "attention.png", "mistakes.png")
FILES = (*MADE_FROM_CHECKPOINT, "checkpoint.pt", *PICTURES)


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
    def done(self) -> Path:
        """{"sha256": {file: digest}} in JSON, written last; empty in the runs of earlier versions."""
        return self.path / "DONE"

    @property
    def is_done(self) -> bool:
        """Whether the run says that it is complete; `require_sound` says whether it is."""
        return self.done.is_file()

    def write_metrics(self, history: list[dict[str, Any]]) -> None:
        """Replace metrics.jsonl by the records of `history`."""
        write_bytes(self.metrics, _lines(history))

    def read_report(self) -> Report:
        """The content of report.json. Raises UserError where it is missing, or no report."""
        try:
            return read_report(self.report)
        except OSError as error:
            raise self._missing("report.json") from error
        except (ValueError, msgspec.ValidationError) as error:
            raise self._changed("report.json") from error

    def mark_done(self) -> None:
        """Say that everything else is in place, and what it is."""
        there = [name for name in FILES if (self.path / name).is_file()]
        write_text(self.done, readable_json({"sha256": {name: sha256_file(self.path / name) for name in there}}))

    def missing(self) -> list[str]:
        """The files that DONE declares and that are not there. Raises UserError for one that is not what it declares.

        DONE of earlier versions declares no digests: the checkpoint, the report and the config must be there.
        """
        declared = self._declared()
        missing = [name for name in declared if not (self.path / name).is_file()]
        for name, digest in declared.items():
            if digest and name not in missing and sha256_file(self.path / name) != digest:
                raise self._changed(name)
        if "checkpoint.pt" in missing:
            raise UserError(
                f"{self.path} has DONE but no checkpoint.pt: its head is lost; put the file back, or choose another "
                "--run to train the same head again"
            )
        return missing

    def finished_report(self) -> Report:
        """The report of a complete run. Raises UserError unless all files are there and are what DONE declares.

        Where DONE is of an earlier version and declares nothing, checkpoint, report and config must be of one run.
        """
        for name in self.missing():
            raise self._missing(name)
        report = self.read_report()
        if not any(self._declared().values()):
            self._require_one_run(report)
        return report

    def read_config(self) -> Config:
        """The config in config.toml; keys that it is too old to have get their defaults."""
        try:
            return load(Config, self.config)
        except UserError as error:
            raise UserError(f"{self.path} holds what is no run ({error.message}): choose another --run") from error

    def _require_one_run(self, report: Report) -> None:
        from train.checkpoint import config_of, load_checkpoint  # here: they wait for torch

        content = load_checkpoint(self.checkpoint)
        begun = config_of(content, self.checkpoint)
        require_same(self.config, begun, self.read_config())
        if self.metrics.read_bytes() != _lines(content["history"]):
            raise self._changed("metrics.jsonl")
        require_same(self.report, begun, from_dict(Config, report.config, str(self.report)))
        if report.store.identity_sha256 != content["store_identity"]:
            raise UserError(f"{self.report} and checkpoint.pt are of other feature stores: choose another --run")

    def _declared(self) -> dict[str, str | None]:
        try:
            text = self.done.read_text(encoding="utf-8")
            if not text:
                return dict.fromkeys((*MADE_FROM_CHECKPOINT, "checkpoint.pt"))
            declared = json.loads(text)["sha256"]
            if set(declared) <= set(FILES) and {"checkpoint.pt", "report.json"} <= set(declared):
                return declared
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise UserError(
            f"{self.done} is damaged: remove this one file, and the command that began the run completes it again"
        )

    def _missing(self, name: str) -> UserError:
        return UserError(
            f"{self.path} has DONE but no {name}: the command that began the run makes it again from the checkpoint"
        )

    def _changed(self, name: str) -> UserError:
        what = f"{self.path / name} is not what DONE declares: it was damaged or changed after the run was complete"
        if name == "checkpoint.pt":
            return UserError(
                f"{what}; the report beside it is sound; put the file back, or choose another --run to train the same "
                "head again"
            )
        return UserError(
            f"{what}; put it back, or move this one file away, and the command that began the run makes it again from "
            "the checkpoint"
        )


def _lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()
