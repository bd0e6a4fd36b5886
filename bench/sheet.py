"""`python -m bench.sheet FOLDER STORE OUT.png`: the first findings of an audit on one sheet, to be looked at.

Each beside two typical images of its own class, and two of the one that it rather belongs to.
"""

from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw

from common.errors import UserError
from common.store import FeatureStore
from find.findings import Finding, Findings

LARGE, SMALL = 64, 31  # pixels; two small pictures are as high as a large one
LINE, GAP = 26, 10


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("store_path", type=click.Path(path_type=Path), metavar="STORE")
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--split", default="train", show_default=True)
@click.option("--first", default=0, show_default=True, help="The number of the first finding.")
@click.option("--count", default=50, show_default=True)
@click.option("--columns", default=5, show_default=True)
@click.option("--pairs", is_flag=True, help="Those with a duplicate, instead of all others.")
def main(
    folder: Path, store_path: Path, out: Path, split: str, first: int, count: int, columns: int, pairs: bool
) -> None:
    """Draw findings of FOLDER, with the thumbnails of STORE."""
    found, store = Findings.read(folder), FeatureStore.open(store_path)
    if store.thumbnails is None:
        raise UserError(f"{store_path} has no thumbnails: extract it again")
    thumbnails = store.thumbnails
    of_split = [each for each in found.findings if each.split == split and bool(each.copies) == pairs]
    cells = [
        _cell(number, each, found, thumbnails) for number, each in enumerate(of_split[first : first + count], first + 1)
    ]
    width, height = cells[0].width + GAP, cells[0].height + GAP
    sheet = Image.new("RGB", (width * columns, height * -(-len(cells) // columns)), "white")
    for number, cell in enumerate(cells):
        sheet.paste(cell, (number % columns * width, number // columns * height))
    sheet.quantize(128).save(out, optimize=True)


def _cell(number: int, finding: Finding, found: Findings, thumbnails: np.ndarray) -> Image.Image:
    cell = Image.new("RGB", (LARGE + 2 * SMALL + 26, LARGE + LINE), "white")
    draw = ImageDraw.Draw(cell)

    def put(row: int, size: int, x: int, y: int) -> None:
        cell.paste(Image.fromarray(np.array(thumbnails[row])).resize((size, size), Image.Resampling.BICUBIC), (x, y))

    put(finding.row, LARGE, 0, LINE)
    for column, name in enumerate((finding.own, finding.suggested)):
        x = LARGE + 6 + column * (SMALL + 3)
        for line, image in enumerate(found.typical.get(name or "", ())[:2]):
            put(image.row, SMALL, x, LINE + line * (SMALL + 2))
    draw.text((0, 0), f"{number}  in {finding.own}", fill="black")
    draw.text((0, 12), f"rather {finding.suggested or 'of no class'}, {finding.probability:.2f}", fill="black")
    return cell


if __name__ == "__main__":
    main()
