"""The command line of stage 2. Heavy imports wait inside the commands, so that --help answers at once."""

from pathlib import Path

import click

from common.config import to_toml
from common.files import exclusive, sha256_text, write_text, writing_to
from common.run_folder import RunFolder
from common.store import FeatureStore
from train.config import Config, Phase, classes_from


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Stage 2: train a head on sets of cached features."""


@main.command()
@click.option("--store", "store_path", type=click.Path(path_type=Path), required=True, help="The feature store.")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="A TOML file.  [default: the defaults]")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key, such as head.layers=2.")
@click.option("--classes", help="Class names separated by commas, or a file with one a line. As data.classes.")
@click.option("--seed", type=click.IntRange(0), help="As training.seed.")
@click.option("--device", help="As training.device: auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--run", "run_path", type=click.Path(path_type=Path), help="The run folder.  [default: runs/<config>-seed<seed>-…]"
)
def fit(
    store_path: Path,
    config_path: Path | None,
    overrides: tuple[str, ...],
    classes: str | None,
    seed: int | None,
    device: str | None,
    run_path: Path | None,
) -> None:
    """Train the head from a feature store, and write a run folder. Prints the folder's path last.

    A run that was stopped goes on after its last epoch when the same command is given again; a complete one is only
    reported.
    """
    extra = [] if classes is None else [f"data.classes={','.join(classes_from(classes))}"]
    extra += [] if seed is None else [f"training.seed={seed}"]
    extra += [] if device is None else [f"training.device={device}"]
    config = Config.load(config_path, [*overrides, *extra])
    store = FeatureStore.open(store_path)
    run = RunFolder(run_path or _default_run(config, config_path, store))
    with exclusive(run.path, f"another process is writing {run.path}: wait for it, or choose another --run"):
        _fit(run, config, store)
    click.echo(run.path)


@main.command()
@click.argument("config_path", type=click.Path(path_type=Path), metavar="CONFIG")
@click.option("--store", "store_path", type=click.Path(path_type=Path), required=True, help="The feature store.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key in all runs.")
@click.option("--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), help="Holds a folder a phase.")
def phase(config_path: Path, store_path: Path, overrides: tuple[str, ...], root: Path) -> None:
    """Make all runs of a phase: the [plan] of CONFIG. Complete runs stay, an interrupted one goes on.

    Each is `train fit` into RUNS/<the config's folder>/<name>-seed<seed>.
    """
    configs = Phase.runs(config_path, overrides)
    store = FeatureStore.open(store_path)
    for number, (name, config) in enumerate(configs.items(), 1):
        run = RunFolder(root / config_path.resolve().parent.name / name)
        click.echo(f"run {number} of {len(configs)}: {run.path}", err=True)
        with exclusive(run.path, f"another process is writing {run.path}: wait for it"):
            _fit(run, config, store)
    click.echo(root / config_path.resolve().parent.name)


def _default_run(config: Config, config_path: Path | None, store: FeatureStore) -> Path:
    """A folder for each experiment: another config or another store never meets the run of this one."""
    name = "default" if config_path is None else config_path.resolve().parent.name
    digest = sha256_text(to_toml(config) + store.identity_sha256)[:8]
    return Path("runs") / f"{name}-seed{config.training.seed}-{digest}"


def _fit(run: RunFolder, config: Config, store: FeatureStore) -> None:
    from train import checkpoint
    from train.loop import Progress, train
    from train.report import summary, write_report
    from train.task import prepare

    identity = store.identity_sha256
    progress = checkpoint.progress_of(run.checkpoint, config, identity)
    if run.is_done:
        click.echo(f"complete: {run.path}\n{summary(run.read_report())}", err=True)
        return
    task = prepare(store, config.data)

    def save(progress: Progress) -> None:
        checkpoint.save_checkpoint(run.checkpoint, config, task.feature_dim, identity, progress)
        run.write_metrics(progress.history)
        record = progress.history[-1]
        click.echo(
            f"epoch {record['epoch']:3d}  train loss {record['train_loss']:.4f}  "
            f"val loss {record['val_loss']:.4f}  val top-1 {100 * record['val_top1']:.2f} %",
            err=True,
        )

    if progress.history:
        click.echo(f"going on with {run.path} after epoch {len(progress.history)}", err=True)
    with writing_to(run.path):
        write_text(run.config, to_toml(config))
        model = train(config, task, progress, save)
        report = write_report(run, config, store, task, model, progress.history)
        finished = Progress(progress.history, progress.best)
        checkpoint.save_checkpoint(run.checkpoint, config, task.feature_dim, identity, finished)
        run.mark_done()
    click.echo(summary(report), err=True)
