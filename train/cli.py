"""The command line of stage 2. Heavy imports wait inside the commands, so that --help answers at once."""

from collections.abc import Sequence
from pathlib import Path

import click
from msgspec.structs import replace

from common.cluster import asked_for, cluster_options
from common.command_line import CommandLine
from common.errors import UserError
from common.files import Busy, exclusive
from common.joined import open_stores
from common.markdown import report_stale
from common.progress import say
from train.config import RECOMMENDED, Config


@click.group(cls=CommandLine, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Stage 2: train a head on sets of cached features."""


@main.command("fit")
@click.option(
    "--store",
    "store_paths",
    type=click.Path(path_type=Path),
    required=True,
    multiple=True,
    help="The feature store; with several, of the same images, their features side by side.",
)
@click.option(
    "--config", "config_path", type=click.Path(path_type=Path), help="A TOML file.  [default: the recommended recipe]"
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key, such as head.layers=2.")
@click.option("--classes", help="Class names separated by commas, or a file with one a line. As data.classes.")
@click.option("--seed", type=click.IntRange(0), help="As training.seed.")
@click.option("--device", help="As training.device: auto, cpu, cuda, cuda:1, mps.")
@click.option(
    "--run", "run_path", type=click.Path(path_type=Path), help="The run folder.  [default: runs/<config>-seed<seed>-…]"
)
@click.option("--tensorboard", is_flag=True, help="Write events for TensorBoard into the run folder, too.")
def fit_command(
    store_paths: tuple[Path, ...],
    config_path: Path | None,
    overrides: tuple[str, ...],
    classes: str | None,
    seed: int | None,
    device: str | None,
    run_path: Path | None,
    tensorboard: bool,
) -> None:
    """Train the head from a feature store, and write a run folder. Prints the folder's path last.

    Run the same command again to resume a stopped run after its last epoch. Of a complete run the result is shown.
    """
    config = load_config(config_path, overrides, classes, seed, device)
    store = open_stores(store_paths, say)

    from train.fit import choose_run_folder, fit

    run = run_path or choose_run_folder(config, config_path, store)
    fit(config, store, run, say, tensorboard)
    click.echo(run)


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
@click.option(
    "--beside",
    type=click.Path(path_type=Path),
    multiple=True,
    help="A store of the same images, whose features are put beside those of each --store.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change one key in all runs.")
@click.option("--only", default="*", metavar="PATTERN", help="Only the runs whose name matches, such as 'knn*'.")
@click.option("--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), help="Holds a folder a phase.")
@cluster_options
def phase(
    config_path: Path,
    store_paths: tuple[Path, ...],
    beside: tuple[Path, ...],
    overrides: tuple[str, ...],
    only: str,
    root: Path,
    ray: str | None,
    cpus_per_worker: int | None,
    gpus_per_worker: float | None,
) -> None:
    """Make all runs of a phase: the [plan] of CONFIG. Complete runs are kept, an interrupted one is resumed.

    Each is `train fit` into RUNS/<the config's folder>/<name>-seed<seed>. Several processes may work on one phase:
    each takes the next run that is free. With --ray each run is a task on a cluster, whose nodes see the same paths.
    """
    from train.fit import fit
    from train.log.plan import plan_runs

    cluster = asked_for(ray, cpus_per_worker, gpus_per_worker)
    stores = [open_stores([path, *beside], say) for path in store_paths]
    planned = plan_runs(config_path, stores, root, overrides, only)
    if cluster is not None:
        from train.log.cluster import fit_on_cluster

        fit_on_cluster(planned, cluster, say)
    else:
        for number, run in enumerate(planned, 1):
            say(f"run {number} of {len(planned)}: {run.path}")
            try:
                fit(run.config, run.store, run.path, say)
            except Busy as busy:
                say(busy.message)
    click.echo(planned[0].path.parent)


@main.command()
@click.argument("paths", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="RUN RUN …")
@click.option("--hard", is_flag=True, help="On the hard sets, whose anomaly is of the set's super-class.")
def compare(paths: tuple[Path, ...], hard: bool) -> None:
    """Rank runs on the same sets, and test their differences.

    A RUN is a run folder, or a report.json. Runs that differ only in their seeds are one group.
    """
    from train.log.runs import group_runs, join_values, load_run, mark_arithmetic
    from train.log.tables import ranking

    groups = group_runs(map(load_run, paths))
    click.echo(ranking(mark_arithmetic(groups), "hard" if hard else "test"))
    if used := join_values([group for group in groups if group.first.history], lambda report: report.arithmetic_used):
        click.echo(f"Training was computed in {used}.")


@main.command()
@click.option("--runs", "root", type=click.Path(path_type=Path), default=Path("runs"), help="Holds a folder a phase.")
@click.option("--experiments", type=click.Path(path_type=Path), default=Path("experiments"), help="Holds the logs.")
@click.option("--readme", type=click.Path(path_type=Path), default=Path("README.md"), help="Its tables are made, too.")
@click.option("--check", is_flag=True, help="Change nothing; exit code 1 when a log is not what its runs say.")
def log(root: Path, experiments: Path, readme: Path, check: bool) -> None:
    """Rebuild the experiment log from the reports of finished runs.

    First the reports of new runs in RUNS/<phase>/ are copied to EXPERIMENTS/<phase>/runs/. Then every table, chart and
    number of the log is made from the reports there.
    """
    from train.log.rebuild import collect, rebuild

    if not experiments.is_dir():
        raise UserError(f"there is no folder {experiments}: give --experiments the folder of the log")
    if check:
        stale = rebuild(experiments, readme, check)
    else:
        with exclusive(experiments, "another process rebuilds the log", *experiments.glob("*/**/"), readme):
            for line in collect(root, experiments):
                click.echo(line, err=True)
            stale = rebuild(experiments, readme, check)
    report_stale(stale, check)


def load_config(
    path: Path | None, overrides: Sequence[str], classes: str | None, seed: int | None, device: str | None
) -> Config:
    """Load the config of a file (None: the recommended recipe), changed by the options of `fit`."""
    options = {"training.seed": seed, "training.device": device}
    more = [f"{key}={value}" for key, value in options.items() if value is not None]
    config = Config.load(path or RECOMMENDED, [*overrides, *more])
    if classes is None:
        return config
    # Not by an override, which is split at commas: a class may have one in its name
    return replace(config, data=replace(config.data, classes=parse_classes(classes)))


def parse_classes(text: str) -> tuple[str, ...]:
    """Return class names: `text` has them separated by commas, or is the path of a text file with one per line.

    In a file, blank lines and what follows a # are ignored.

    >>> parse_classes("apple, bear")
    ('apple', 'bear')
    """
    path = Path(text)
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # many names are longer than a file's name may be
        is_file = False
    if not is_file:
        if path.suffix == ".txt" or "/" in text:
            raise UserError(f"no file {text}: give a file with one class a line, or names separated by commas")
        return tuple(name.strip() for name in text.split(",") if name.strip())
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the class names in {path}: {error}") from error
    names = tuple(name for line in lines if (name := line.partition("#")[0].strip()))
    if not names:
        raise UserError(f"{path} names no class: write one a line")
    return names
