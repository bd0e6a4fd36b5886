"""The metrics of a run as events that TensorBoard shows."""

from pathlib import Path
from pkgutil import resolve_name

from common.errors import UserError
from train.report.schema import Epoch

NAMES = "events.out.tfevents.*"
SHOWN = {"train_loss": "train/loss", "train_top1": "train/top1", "val_loss": "val/loss", "val_top1": "val/top1"}
SHOWN |= {"learning_rate": "learning_rate"}


def require_tensorboard() -> type:
    """The writer of events. Raises UserError where TensorBoard is not installed."""
    try:
        return resolve_name("torch.utils.tensorboard:SummaryWriter")  # an extra
    except ImportError as error:
        message = "TensorBoard is not installed: `pip install tensorboard`, or leave --tensorboard out"
        raise UserError(message) from error


class Events:
    """The events of the run in `folder`, as a context manager. Old ones are removed: no epoch is there twice."""

    def __init__(self, folder: Path):
        for path in folder.glob(NAMES):
            path.unlink()
        self._writer, self._written = require_tensorboard()(str(folder)), 0

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, history: list[Epoch]) -> None:
        """Write the epochs of `history` that are not written yet."""
        for record in history[self._written :]:
            for name, tag in SHOWN.items():
                self._writer.add_scalar(tag, getattr(record, name), record.epoch)
        self._written = len(history)
        self._writer.flush()
