"""From a config and a feature store to a finished run: the path of the data through training, top to bottom."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

from common.command_line import keeping
from common.errors import UserError
from common.files import clear_up_folder, exclusive, write_text
from common.progress import is_quiet
from common.schema import to_toml
from common.store import FeatureStore
from train.checkpoint import Checkpoint, load_checkpoint, require_fitting, save_checkpoint
from train.config import Config
from train.events import NAMES, Events, require_tensorboard
from train.experiment import digest_config, require_same
from train.loop import RunState, train
from train.methods.base import build_method
from train.report.schema import Epoch, Report, read_report
from train.report.write import summary, write_report
from train.run_folder import FILES, RunFolder
from train.task import prepare

Say = Callable[[str], object]


def fit(config: Config, store: FeatureStore, run: Path | str, say: Say = print, tensorboard: bool = False) -> Report:
    """Train the method of `config` on the features of `store`, write the run folder `run`, and return its report.

    A run that was stopped resumes after its last epoch; of a complete one the report is read. `say` gets lines of
    progress. tensorboard: write events for TensorBoard into the folder, too.
    Raises UserError for a run of another config or store, a damaged one, settings that do not suit the store, a folder
    that cannot be written, and Busy while another process writes it. What is in the folder stays sound.
    """
    folder = RunFolder(Path(run))
    if tensorboard:
        require_tensorboard()
    if not folder.is_complete():
        busy = f"another process is at work on {folder.path}: wait for it, or choose another folder"
        with exclusive(folder.path, busy):
            if not folder.is_complete():  # another process may have completed it in this very moment
                return _train(folder, config, store, say, tensorboard)
    clear_up_folder(folder.path)
    checkpoint = _load_checkpoint(folder, config, store)
    if checkpoint and tensorboard and not any(folder.path.glob(NAMES)):
        with Events(folder.path) as events:
            events.write(checkpoint.history)
    report = read_report(folder.report)
    say(f"complete: {folder.path}\n{summary(report)}")
    return report


def choose_run_folder(config: Config, config_path: Path | None, store: FeatureStore) -> Path:
    """Return the default folder: another one for another config or another store."""
    name = "recommended" if config_path is None else config_path.resolve().parent.name
    return Path("runs") / f"{name}-seed{config.training.seed}-{digest_config(config, store.identity_sha256)}"


def _train(run: RunFolder, config: Config, store: FeatureStore, say: Say, tensorboard: bool) -> Report:
    checkpoint = _load_checkpoint(run, config, store)
    if run.is_done:
        run.done.unlink()  # it declares files that are missing: they are made again
    task = prepare(store, config.data)
    model = build_method(config, task.feature_dim, len(task.train.classes))
    if not checkpoint:
        checkpoint = Checkpoint(config=config, input_dim=task.feature_dim, store_identity=store.identity_sha256)
    require_fitting(run.checkpoint, checkpoint, model)
    checkpoint.config = config  # it may have another device now
    write_text(run.config, to_toml(config))
    epochs_saved = len(checkpoint.history)
    if epochs_saved:
        say(f"going on with {run.path} after epoch {epochs_saved}")
        run.write_metrics(checkpoint.history)  # a kill may have come between the checkpoint and these

    def save(state: RunState) -> None:
        nonlocal epochs_saved
        _save(run, checkpoint)
        epochs_saved = len(state.history)
        if events:
            events.write(state.history)
        if not is_quiet():
            say(_format_epoch(state.history[-1]))

    saved = keeping(lambda: f"{epochs_saved} of {config.training.epochs} epochs are saved in {run.path}")
    with saved, Events(run.path) if tensorboard else nullcontext() as events:
        if events:
            events.write(checkpoint.history)
        train(config.training, task, model, checkpoint, save)
        report = write_report(run, config, task, model, checkpoint.history)
        _save(run, checkpoint)
        run.mark_done()
    say(summary(report))
    return report


def _load_checkpoint(run: RunFolder, config: Config, store: FeatureStore) -> Checkpoint | None:
    """Load how far the run is. Raises UserError where the folder is of another run, of two, or of something else."""
    checkpoint = load_checkpoint(run.checkpoint) if run.checkpoint.is_file() else None
    if checkpoint:
        if checkpoint.store_identity != store.identity_sha256:
            raise UserError(
                f"{run.path} was begun with another feature store (identity {checkpoint.store_identity[:16]}, now "
                f"{store.identity_sha256[:16]}): choose another --run, or give the store that it was begun with"
            )
        require_same(run.path, checkpoint.config, config)
    if run.config.is_file():
        require_same(run.path, run.read_config(), config)
    elif not checkpoint and (names := [name for name in FILES if (run.path / name).is_file()]):
        raise UserError(
            f"{run.path} is not a run folder (it has {', '.join(names)} but no config.toml): choose another --run"
        )
    return checkpoint


def _save(run: RunFolder, checkpoint: Checkpoint) -> None:
    save_checkpoint(run.checkpoint, checkpoint)
    run.write_metrics(checkpoint.history)


def _format_epoch(record: Epoch) -> str:
    return (
        f"epoch {record.epoch:3d}  train loss {record.train_loss:.4f}  val loss {record.val_loss:.4f}  "
        f"val top-1 {100 * record.val_top1:.2f} %"
    )
