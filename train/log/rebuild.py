"""The experiment log: reports of runs in, tables and charts out. No number in it is typed.

A log is a Markdown file whose generated parts stand between `<!-- generated: BLOCK PATTERN … -->` and `<!-- end -->`.
BLOCK is a function of `train.log.tables`; the patterns choose runs by name, "<phase>/<name>" outside the phase's
own log.
"""

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from common.errors import UserError, unknown_name
from common.files import write_text
from common.markdown import fill_blocks, rewrite
from train.experiment import find_changes
from train.log.charts import CHARTS
from train.log.plan import plan_configs
from train.log.runs import Group, group_runs, join_values, load_run, mark_arithmetic
from train.log.tables import BLOCKS
from train.run_folder import RunFolder

MEASURED = re.compile(r"^# Measured: .*$", re.M)


def collect(runs: Path, experiments: Path) -> Iterator[str]:
    """Copy the reports of finished runs into the log's folders, and yield a line for each copied or left out.

    Raises UserError for a run whose config is not the one that the phase's plan has for it now.
    """
    for config in sorted(experiments.glob("*/config.toml")):
        folder = config.parent
        finished = [path for path in sorted((runs / folder.name).glob("*")) if RunFolder(path).is_done]
        plan = plan_configs(config) if finished else {}
        for path in finished:
            run = load_run(path)
            planned = plan.get(re.sub(r"@.*(?=-seed)", "", run.name))
            if planned is None:
                yield f"left out: {path}, which is not in the plan of {config}"
                continue
            if changed := find_changes(run.config, planned):
                raise UserError(
                    f"{path} was made with another config than {config} has for it now, in {', '.join(changed)}: give "
                    "the plan the old values, or move the run out of the folder and make it again"
                )
            target, text = folder / "runs" / f"{run.name}.json", RunFolder(path).report.read_text(encoding="utf-8")
            if not target.is_file() or target.read_text(encoding="utf-8") != text:
                write_text(target, text)
                yield f"collected: {target}"


def rebuild(experiments: Path, readme: Path, check: bool = False) -> list[Path]:
    """Make every generated part of the logs again, and return the files that differed; `check` leaves them unchanged.

    Pictures are drawn, but not compared: other versions of matplotlib draw them a little differently.
    """
    groups = {
        folder.name: group_runs([load_run(path) for path in sorted((folder / "runs").glob("*.json"))])
        for folder in sorted(experiments.iterdir())
        if folder.is_dir()
    }
    stale = []
    for path in [*sorted(experiments.glob("*/experiment_log.md")), experiments / "README.md", readme]:
        make = partial(_make_block, path, groups, check)
        if path.is_file() and rewrite(path, partial(fill_blocks, kind="generated", make=make), check):
            stale.append(path)
    for path in sorted(experiments.glob("*/config.toml")):
        if rewrite(path, partial(MEASURED.sub, _describe_result(groups[path.parent.name])), check):
            stale.append(path)
    return stale


def select(groups: dict[str, list[Group]], phase: str, patterns: list[str], where: Path) -> list[Group]:
    """Return the groups that match, in the order of the patterns; a group of another phase is named <phase>/<name>.

    Raises UserError where a pattern matches none.
    """
    chosen: list[Group] = []
    for pattern in patterns:
        name, _, rest = pattern.rpartition("/")
        matching = [
            Group(f"{name}/{group.name}" if name else group.name, group.runs)
            for group in groups.get(name or phase, [])
            if fnmatch(group.name, rest)
        ]
        if not matching:
            raise UserError(f"{where}: no run matches {pattern}: make it with `train phase`, or change the pattern")
        chosen += [group for group in matching if group not in chosen]
    return chosen


def _make_block(path: Path, groups: dict[str, list[Group]], check: bool, block: str) -> str:
    """Make the content of "BLOCK PATTERN …" in the log at `path`, and its chart."""
    name, *patterns = block.split()
    if name not in BLOCKS:
        raise unknown_name(f"block in {path}", name, BLOCKS)
    chosen = mark_arithmetic(select(groups, path.parent.name, patterns, path))
    if name in CHARTS and not check:
        CHARTS[name](chosen, path.parent / f"{name}.png")
    return BLOCKS[name](chosen)


def _describe_result(groups: list[Group]) -> str:
    """The line of a phase's config that gives its result."""
    if not groups:
        return "# Measured: nothing yet"
    reports = [run.report for group in groups for run in group.runs]
    best = max(groups, key=lambda group: (len(group.runs), group.top1().mean()))
    minutes = sum(report.seconds for report in reports) / 60
    threads = join_values(groups, lambda report: report.hardware.threads)
    return (
        f"# Measured: {len(reports)} runs, {minutes:.0f} min of {threads} thread(s) of "
        f"{join_values(groups, lambda report: report.hardware.cpu)}; {best.name} {100 * best.top1().mean():.2f} % test "
        f"top-1, mean of {len(best.runs)}"
    )
