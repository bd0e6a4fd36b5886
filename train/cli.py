"""The command line of stage 2. Heavy imports wait inside the commands, so that --help answers at once."""

from fnmatch import fnmatch
from pathlib import Path

import click

from common.command_line import CommandLine
from common.config import to_toml
from common.errors import UserError
from common.files import Busy, exclusive, sha256_text, write_text, writing_to
from common.run_folder import RunFolder
from common.store import FeatureStore
from train.config import Config, Phase, classes_from


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
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
@click.option(
    "--store",
    "store_paths",
    type=click.Path(path_type=Path),
    required=True,
    multiple=True,
    help="The feature store; with several, each run is made from each, and named after the store's file.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key in all runs.")
@click.option("--only", default="*", metavar="PATTERN", help="Only the runs whose name matches, such as 'knn*'.")
@click.option("--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), help="Holds a folder a phase.")
def phase(config_path: Path, store_paths: tuple[Path, ...], overrides: tuple[str, ...], only: str, root: Path) -> None:
    """Make all runs of a phase: the [plan] of CONFIG. Complete runs stay, an interrupted one goes on.

    Each is `train fit` into RUNS/<the config's folder>/<name>-seed<seed>. Several processes may work on one phase:
    each takes the next run that is free.
    """
    folder = root / config_path.resolve().parent.name
    stores = [FeatureStore.open(path) for path in store_paths]
    planned = [
        (f"{name}@{store.path.stem}-seed{seed}" if len(stores) > 1 else f"{name}-seed{seed}", config, store)
        for full, config in Phase.runs(config_path, overrides).items()
        for name, _, seed in [full.rpartition("-seed")]
        for store in stores
        if fnmatch(name, only)
    ]
    if not planned:
        raise UserError(f"no run of {config_path} matches {only}: give --only a name of its [plan], or a pattern")
    for number, (name, config, store) in enumerate(planned, 1):
        run = RunFolder(folder / name)
        click.echo(f"run {number} of {len(planned)}: {run.path}", err=True)
        try:
            with exclusive(run.path, f"another process is at work on {run.path}"):
                _fit(run, config, store)
        except Busy as busy:
            click.echo(busy.message, err=True)
    click.echo(folder)


@main.command()
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RUN RUN …")
@click.option("--hard", is_flag=True, help="On the hard sets, whose anomaly is of the set's super-class.")
def compare(paths: tuple[Path, ...], hard: bool) -> None:
    """Rank runs that were measured on the same sets, and say which differences are real.

    A RUN is a run folder, or a report.json. Runs that differ in their seed only are taken together.
    """
    from train.comparison import table
    from train.runs import groups_of, load_run

    click.echo(table(groups_of(map(load_run, paths)), "hard" if hard else "test"))


@main.command()
@click.option("--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), help="Holds a folder a phase.")
@click.option("--experiments", type=click.Path(path_type=Path), default=Path("experiments"), help="Holds the logs.")
@click.option("--readme", type=click.Path(path_type=Path), default=Path("README.md"), help="Its tables are made, too.")
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 when a log is not what its runs say.")
def log(root: Path, experiments: Path, readme: Path, check: bool) -> None:
    """Rebuild the experiment log from the reports of finished runs: every table, chart and figure in it.

    Reports of new runs in RUNS/<phase>/ are copied to EXPERIMENTS/<phase>/runs/ first; the log is made from these.
    """
    from train.log import collect, rebuild

    if not check:
        for line in collect(root, experiments):
            click.echo(line, err=True)
    stale = rebuild(experiments, readme, check)
    for path in stale:
        click.echo(f"{'stale' if check else 'rewritten'}: {path}", err=True)
    raise SystemExit(bool(check and stale))


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
