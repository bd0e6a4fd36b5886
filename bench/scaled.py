"""`python -m bench.scaled FOLDER`: how near features of pictures read at a part of their size come to full decoding."""

import io
from pathlib import Path

import click
import numpy as np
from PIL import Image

from common.images import image_suffixes, read_image
from common.markdown import markdown_table
from extract.backbones import load_backbone, preprocessing_of


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
@click.option("--backbone", default="resnet18", show_default=True)
@click.option("--weights", default="torchvision", show_default=True)
@click.option("--format", "kind", default="JPEG", show_default=True, help="Of the enlarged files: JPEG or PNG.")
@click.option("--images", default=100, show_default=True, help="Photographs, evenly spaced.")
@click.option("--side", "sides", multiple=True, type=int, default=(1104, 2208, 4416), help="Shorter side, enlarged to.")
def main(folder: Path, backbone: str, weights: str, kind: str, images: int, sides: tuple[int, ...]) -> None:
    """Enlarge photographs of FOLDER, save them, and compare the features of both ways to decode them."""
    network, preprocessing = load_backbone(backbone, weights, 0), preprocessing_of(backbone)
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in image_suffixes())
    chosen = [files[i] for i in np.unique(np.linspace(0, len(files) - 1, images).astype(int))]
    table = [["shorter side", "decoded at", "n", "lowest cosine", "median"]]
    for side in sides:
        cosines, parts = [], set()
        for path in chosen:
            data = enlarge(path, side, kind)
            full, scaled = (read_image(path, data=data, least_side=s) for s in (None, preprocessing.least_side()))
            parts.add(f"1/{round(min(full.shape[:2]) / min(scaled.shape[:2]))}")
            a, b = (network.features(preprocessing([pixels])[0])[0].double() for pixels in (full, scaled))
            cosines.append(float(a @ b / (a.norm() * b.norm())))
        measured = [f"{min(cosines):.6f}", f"{np.median(cosines):.6f}"]
        table.append([str(side), ", ".join(sorted(parts)), str(len(cosines)), *measured])
    click.echo(markdown_table(table))


def enlarge(path: Path, side: int, kind: str) -> bytes:
    """The file of a photograph whose shorter side has so many pixels, of multiples of 8, as cameras have them."""
    picture, file = Image.fromarray(read_image(path)), io.BytesIO()
    width, height = (8 * round(pixels * side / min(picture.size) / 8) for pixels in picture.size)
    picture.resize((width, height), Image.Resampling.BICUBIC).save(file, kind, quality=90)
    return file.getvalue()


if __name__ == "__main__":
    main()
