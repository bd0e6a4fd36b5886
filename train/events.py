"""The metrics of a run as events that TensorBoard shows."""

from pathlib import Path
from pkgutil import resolve_name

from common.errors import import_optional
from train.report.schema import Epoch

NAMES = "events.out.tfevents.*"
TAGS = {
    "train_loss": "train/loss",
    "train_top1": "train/top1",
    "val_loss": "val/loss",
    "val_top1": "val/top1",
    "learning_rate": "learning_rate",
}


def require_tensorboard() -> None:
    """Raise UserError where TensorBoard is not installed: it is an extra."""
    import_optional("tensorboard", "leave --tensorboard out")


class Events:
    """The events of the run in `folder`, as a context manager. Old ones are removed: no epoch is there twice."""

    def __init__(self, folder: Path):
        for path in folder.glob(NAMES):
            path.unlink()
        self._writer, self._written = resolve_name("torch.utils.tensorboard:SummaryWriter")(str(folder)), 0

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, history: list[Epoch]) -> None:
        """Write the epochs of `history` that are not written yet."""
        for record in history[self._written :]:
            for name, tag in TAGS.items():
                self._writer.add_scalar(tag, getattr(record, name), record.epoch)
        self._written = len(history)
        self._writer.flush()
