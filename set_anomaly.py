"""The one command: the verbs of all stages. A verb is imported when it is asked for."""

import os
import pkgutil
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import click

from common.command_line import CommandLine, stoppable
from common.errors import UserError, unknown_name

VERBS = {
    "features": "extract.cli:features",
    "verify": "extract.cli:verify",
    "status": "extract.cli:status",
    "info": "extract.cli:info",
    "names": "extract.cli:names",
    "export": "extract.cli:export",
    "fit": "train.cli:fit_command",
    "phase": "train.cli:phase",
    "compare": "train.cli:compare",
    "log": "train.cli:log",
    "odd": "find.cli:odd",
    "audit": "find.cli:audit",
}
UNSORTED = {"odd": "folder", "audit": "imagefolder"}  # verbs that take pictures, and the image source that reads them
# The options of an extraction that these verbs have, too
READ = ["on_error", "max_pixels", "decode", "image_column", "label_column", "backbone", "weights", "weights_seed"]
READ += ["image_size", "views", "layers", "precision", "engine", "batch_size", "device"]


class Verbs(CommandLine):
    """A group whose commands are those of the three stages."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The verbs, in the order of the work."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a verb, None for an unknown one."""
        if cmd_name not in VERBS:
            return None
        command = pkgutil.resolve_name(VERBS[cmd_name])
        return _of_pictures(command, UNSORTED[cmd_name]) if cmd_name in UNSORTED else command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is called. Raises UserError, which says the nearest verb, for one that there is not."""
        if args and args[0] not in VERBS and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise unknown_name("command", args[0], VERBS)
        return super().resolve_command(ctx, args)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="set-anomaly", prog_name="set-anomaly")
def main() -> None:
    """Set anomaly detection on cached features: images → features → a trained head, odd images, wrong labels."""


def _of_pictures(command: click.Command, dataset: str) -> click.Command:
    """A command of `find` on a store, as one that takes pictures, too, and makes their store.

    dataset: the image source that reads a folder.
    """
    reading = pkgutil.resolve_name("extract.cli:features").params
    cache = click.Option(
        ["--cache"], type=click.Path(path_type=Path), help="Keeps the features.  [default: ~/.cache/set-anomaly]"
    )

    def find(store_path: Path, open_page: bool, cache: Path | None, **options: Any) -> None:
        from common.images import why_no_image
        from find.output import Output

        read = {name: options.pop(name) for name in READ}
        make: Callable[[], object] | None = None
        if str(store_path).startswith("hf:"):
            store_path, make = _store({"dataset": str(store_path), **read}, cache or _cache())
        elif store_path.is_dir() or store_path.suffix.lower() == ".csv":
            options["root"] = options["root"] or store_path
            source = dataset if store_path.is_dir() else "csv"
            store_path, make = _store({"dataset": source, "root": store_path, **read}, cache or _cache())
        elif not store_path.exists():
            raise UserError(f"there is nothing at {store_path}: check the path of the pictures")
        elif not why_no_image(store_path.name):
            raise UserError(f"{store_path} is one picture: give a folder, whose pictures are compared with each other")
        options["out"] = options["out"] or Path("runs") / f"find-{store_path.stem}"
        if make:
            Output(**{field.name: options[field.name] for field in fields(Output)})  # before hours of work, not after
            make()
        with stoppable("the same command starts anew, and finds the features made"):
            click.get_current_context().invoke(command, store_path=store_path, **options)
        if open_page:
            click.launch((options["out"] / "index.html").resolve().as_uri())

    return click.Command(
        command.name,
        callback=find,
        help=(command.help or "").replace("STORE", "PICTURES")
        + "\n\nPICTURES is a folder, a CSV file of paths and labels, a data set of Hugging Face (hf:FOLDER or "
        "hf:OWNER/NAME), or a store. Features of pictures are made once.",
        params=[
            click.Argument(["store_path"], type=click.Path(path_type=Path), metavar="PICTURES"),
            click.Option(["--open", "open_page"], is_flag=True, help="Show the page in the browser."),
            *(each for each in command.params if each.name != "store_path"),
            cache,
            *(each for each in reading if each.name in READ),
        ],
    )


def _cache() -> Path:
    """The folder of this user for what can be made again."""
    named = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (named if named.is_absolute() else Path.home() / ".cache") / "set-anomaly"
    except RuntimeError as error:  # a user without a home
        raise UserError("there is no home folder to keep the features in: give --cache a folder") from error


def _store(request: dict[str, Any], cache: Path) -> tuple[Path, Callable[[], object]]:
    """Where the cache has the store of these pictures, and what makes it unless it is there, also over an older one.

    Its name is of the place and of the options, so that each place has its own.
    """
    from common.store import identity_digest
    from extract.features import Request, find_or_make

    wanted = Request(overwrite=True, **request)
    asked = wanted.as_json()
    # A name on the hub is the same from every folder
    place = wanted.folder.resolve() if wanted.folder.exists() else wanted.folder
    constant = {key: value for key, value in asked.items() if key != "fingerprint"} | {"root": str(place)}
    name = wanted.default_store()
    path = cache / f"{name.stem}-{identity_digest(constant)[:8]}.h5"
    return path, partial(find_or_make, wanted, path)


if __name__ == "__main__":
    main(prog_name="set-anomaly")
