"""From a config and a feature store to a finished run: the path of the data through training, top to bottom."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from common.command_line import keeping
from common.errors import UserError
from common.files import clear_up_folder, exclusive, write_text
from common.progress import is_quiet
from common.schema import to_toml
from common.store import FeatureStore
from train.checkpoint import load_state, require_fitting, save_checkpoint
from train.config import Config
from train.events import NAMES, Events, require_tensorboard
from train.experiment import digest_config, require_same
from train.loop import RunState, train
from train.report.schema import Report
from train.report.write import summary, write_report
from train.run_folder import FILES, RunFolder
from train.task import Task, prepare

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
    if folder.is_done and not folder.find_missing():  # nothing is to be written, so no lock is needed
        clear_up_folder(folder.path)
        return _report_again(folder, config, store, say, tensorboard)
    with exclusive(folder.path, f"another process is at work on {folder.path}: wait for it, or choose another folder"):
        return _train(folder, config, store, say, tensorboard)


def choose_run_folder(config: Config, config_path: Path | None, store: FeatureStore) -> Path:
    """Return the default folder: another one for another config or another store."""
    name = "recommended" if config_path is None else config_path.resolve().parent.name
    return Path("runs") / f"{name}-seed{config.training.seed}-{digest_config(config, store.identity_sha256)}"


def _train(run: RunFolder, config: Config, store: FeatureStore, say: Say, tensorboard: bool) -> Report:
    state = _load_state(run, config, store)
    if run.is_done and not run.find_missing():  # another process completed it in this very moment
        return _report_again(run, config, store, say, tensorboard)
    if run.is_done:
        run.done.unlink()  # it declares files that are missing: they are made again
    task = prepare(store, config.data)
    require_fitting(run.checkpoint, state, config, task.feature_dim, len(task.train.classes))
    write_text(run.config, to_toml(config))
    if state.history:
        say(f"going on with {run.path} after epoch {len(state.history)}")
        run.write_metrics(state.history)  # a kill may have come between the checkpoint and these
    epochs_saved = len(state.history)

    def save(state: RunState) -> None:
        nonlocal epochs_saved
        _save(run, config, task, state)
        if events:
            events.write(state.history)
        epochs_saved = len(state.history)
        if not is_quiet():
            say(_format_epoch(state.history[-1]))

    saved = keeping(lambda: f"{epochs_saved} of {config.training.epochs} epochs are saved in {run.path}")
    with saved, Events(run.path) if tensorboard else nullcontext() as events:
        if events:
            events.write(state.history)
        model = train(config, task, state, save)
        report = write_report(run, config, task, model, state.history)
        _save(run, config, task, RunState(state.history, state.best))
        run.mark_done()
    say(summary(report))
    return report


def _load_state(run: RunFolder, config: Config, store: FeatureStore) -> RunState:
    """Load how far the run is. Raises UserError where the folder is of another run, of two, or of something else."""
    state = load_state(run.checkpoint, config, store.identity_sha256)
    names = [name for name in FILES if (run.path / name).is_file()]
    if run.config.is_file():
        require_same(run.path, run.read_config(), config)
    elif names and not run.checkpoint.is_file():
        raise UserError(
            f"{run.path} is not a run folder (it has {', '.join(names)} but no config.toml): choose another --run"
        )
    return state


def _save(run: RunFolder, config: Config, task: Task, state: RunState) -> None:
    save_checkpoint(run.checkpoint, config, task.feature_dim, task.store.identity_sha256, state)
    run.write_metrics(state.history)


def _report_again(run: RunFolder, config: Config, store: FeatureStore, say: Say, tensorboard: bool) -> Report:
    state = _load_state(run, config, store)
    if tensorboard and not any(run.path.glob(NAMES)):
        with Events(run.path) as events:
            events.write(state.history)
    report = run.read_finished_report()
    say(f"complete: {run.path}\n{summary(report)}")
    return report


def _format_epoch(record: dict[str, Any]) -> str:
    return (
        f"epoch {record['epoch']:3d}  train loss {record['train_loss']:.4f}  "
        f"val loss {record['val_loss']:.4f}  val top-1 {100 * record['val_top1']:.2f} %"
    )
