"""Findings as a page to look at: `index.html` and `pictures/` in a folder, which need no server and no network."""

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
from markupsafe import Markup
from PIL import Image as Pillow

from common.files import claim_folder, sha256_text, write_text, writing_to
from common.images import MAX_PIXELS, UnreadableImage, read_image
from common.progress import Progress
from find.findings import QUESTIONS, TYPICAL, Finding, Findings, Image
from find.text import visible

TEMPLATES = Path(__file__).with_name("templates")
PREVIEWS = 500
PICTURES = "pictures"
BESIDE = 5  # of one finding in so many, from the first, the images beside it are made small, too
SCALE = 1_000_000  # probabilities are written as whole millionths
LONGEST = 512  # pixels; a larger picture is made this small
SMALL = 128  # up to here a picture is kept as it is, as PNG, which the page shows with crisp pixels; larger is JPEG
WORKERS = 4  # at most; each holds one decoded original


def write_page(
    findings: Findings, folder: Path, *, thumbnails: np.ndarray | None = None, previews: int = PREVIEWS
) -> Path:
    """Write `index.html` and `pictures/` into `folder`; the path of the page.

    thumbnails: of the store, (N, H, W, 3) uint8, for images whose original cannot be read. previews: of how many
    findings a small picture is made, from the first; the others show their original, where it is now.
    Raises UserError where the folder cannot be written, or is somebody's.
    """
    claim_folder(folder)
    asked = max((threshold.asked for threshold in findings.thresholds.values()), default=1.0)
    data = _data(findings, asked)
    # The marks in a browser belong to a result. So do its pictures: an older page stays whole meanwhile
    data["digest"] = sha256_text(json.dumps(data))[:16]
    made = _pictures(findings, folder / PICTURES / data["digest"], thumbnails, previews)
    data["pictures"] = {str(row): name for row, (name, _) in made.items()}
    style, *scripts = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("page.css", "marks.js", "page.js"))
    script = "".join(scripts)
    text = _template().render(
        findings=findings,
        name=visible(Path(findings.root).name) if findings.root else "the data set",
        rate=asked,
        questions=[question for question in QUESTIONS if findings.counts.get(question)],
        from_thumbnails=sum(from_thumbnail for _, from_thumbnail in made.values()),
        beyond=max(0, len(findings.findings) - previews) if findings.root else 0,
        previews=previews,
        reviews=Counter(finding.review for finding in findings.findings if finding.review),
        data=_for_script(data),
        style=style,
        script=script,
        policy=_policy(style, script),
    )
    write_text(folder / "index.html", visible(text))
    return folder / "index.html"


def _pictures(
    findings: Findings, folder: Path, thumbnails: np.ndarray | None, previews: int
) -> dict[int, tuple[str, bool]]:
    """Make the pictures of the first findings, of what is beside them, and of every typical image that is shown."""
    first = findings.findings[:previews]
    images = [Image(each.row, each.path) for each in first]
    images += (image for each in first[: previews // BESIDE] for image in _beside(each))
    images += (image for group in _typical(findings).values() for image in group)
    if findings.root is None:  # there are thumbnails alone, so nothing else to show of the others
        images += (Image(each.row, each.path) for each in findings.findings[: previews * 10])
        images += (image for each in first for image in _beside(each))
    wanted = {image.row: Path(findings.root) / image.path if findings.root else None for image in images}
    with writing_to(folder):
        return make_pictures(wanted, folder, thumbnails)


def make_pictures(
    wanted: Mapping[int, Path | None], folder: Path, thumbnails: np.ndarray | None = None
) -> dict[int, tuple[str, bool]]:
    """Write a small picture of each wanted row into `folder`, several at once, from its original or its thumbnail.

    wanted: the original of each row, None where there is none. thumbnails: of the store, (N, H, W, 3) uint8.
    Returns for each row that has a picture its file name, and whether it was made of its thumbnail.
    """
    folder.mkdir(parents=True, exist_ok=True)

    def make(row: int) -> tuple[str, bool] | None:
        path = wanted[row]
        original = picture = None if path is None else _read(path)
        if original is None and thumbnails is not None and row < len(thumbnails):
            picture = Pillow.fromarray(np.ascontiguousarray(thumbnails[row]))
        return None if picture is None else (_save(picture, folder, row), original is None)

    made = {}
    with (
        ThreadPoolExecutor(min(WORKERS, os.cpu_count() or 1)) as pool,
        Progress(len(wanted), "making pictures", "pictures") as progress,
    ):
        for row, picture in zip(wanted, pool.map(make, wanted), strict=True):
            progress.update()
            if picture is not None:
                made[row] = picture
    return made


def _read(path: Path) -> Pillow.Image | None:
    """The picture of an original, made small; None where it cannot be read."""
    if not path.is_file():  # reading a pipe would never end
        return None
    try:
        picture = Pillow.fromarray(read_image(path, MAX_PIXELS, LONGEST))
    except UnreadableImage:
        return None
    if max(picture.size) > SMALL:
        picture.thumbnail((LONGEST, LONGEST), Pillow.Resampling.LANCZOS)
    return picture


def _save(picture: Pillow.Image, folder: Path, row: int) -> str:
    """Write a picture, and return its name; a page that shows the file meanwhile sees a whole one."""
    suffix = "png" if max(picture.size) <= SMALL else "jpg"
    path, temporary = (folder / f"{start}.{suffix}" for start in (row, f".{row}.{os.getpid()}-{os.urandom(4).hex()}"))
    try:
        picture.save(temporary, quality=85)  # which PNG does not know, and ignores
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path.name


def _beside(finding: Finding) -> tuple[Image, ...]:
    """The images that are shown beside a finding: some of its copies, and of those that are most like it."""
    return finding.copies[:TYPICAL] + finding.neighbours[:TYPICAL]


def _typical(findings: Findings) -> dict[str, tuple[Image, ...]]:
    """The typical images of each class that occurs in the list, of the folder, and of each group."""
    named = {name for each in findings.findings for name in (each.own, each.suggested)}
    shown = {name: images for name, images in findings.typical.items() if name in named or not findings.class_names}
    return {**shown, **{group.name: group.typical for group in findings.groups}}


def _data(findings: Findings, asked: float) -> dict[str, Any]:
    """What the script shows, a column for each field, so that 100,000 findings are read in a moment."""
    listed = findings.findings
    names = _numbered(name for each in listed for name in (each.own, each.suggested) if name is not None)
    whys = _numbered(text for each in listed for text in each.why)

    def pairs(images: Sequence[Image]) -> list[tuple[int, str]]:
        return [(image.row, visible(image.path)) for image in images[:TYPICAL]]

    # What a URL holds of a path is its bytes; the script makes it from the text, but where that is not all of them
    paths = {each.path for each in listed} | {image.path for each in listed for image in _beside(each)}
    return {
        "mode": findings.mode,
        "root": visible(findings.root or ""),
        "rootUrl": Path(findings.root).absolute().as_uri() if findings.root else "",
        "scale": SCALE,
        "rate": asked if findings.flagged else 1,
        "names": [visible(name) for name in names],
        "questions": QUESTIONS,
        "whys": [visible(text) for text in whys],
        "row": [each.row for each in listed],
        "path": [visible(each.path) for each in listed],
        "urls": {visible(path): quote(os.fsencode(path)) for path in sorted(paths) if visible(path) != path},
        "own": [-1 if each.own is None else names[each.own] for each in listed],
        "suggested": [-1 if each.suggested is None else names[each.suggested] for each in listed],
        "probability": [int(each.probability * SCALE) for each in listed],
        "q": [round(each.q * SCALE) for each in listed],
        "question": [QUESTIONS.index(each.question) for each in listed],
        "why": [[whys[text] for text in each.why] for each in listed],
        "times": {i: len(each.copies) + 1 for i, each in enumerate(listed) if each.copies},
        "copies": {i: pairs(each.copies) for i, each in enumerate(listed) if each.copies},
        "neighbours": {i: pairs(each.neighbours) for i, each in enumerate(listed) if each.neighbours},
        "review": {i: each.review for i, each in enumerate(listed) if each.review},
        "typical": {visible(name): [image.row for image in images] for name, images in _typical(findings).items()},
    }


def _numbered(texts: Iterable[str]) -> dict[str, int]:
    """Each different text and its number, in the order of the alphabet."""
    return {text: number for number, text in enumerate(sorted(set(texts)))}


def _for_script(data: dict[str, Any]) -> Any:
    """JSON that stays inside its `<script>` element, whatever the names in it are."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c"))


def _policy(style: str, script: str) -> str:
    """What the browser lets the page do: its own style and script, pictures from files, nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (style, script)]
    return (
        f"default-src 'none'; style-src 'sha256-{hashes[0]}'; script-src 'sha256-{hashes[1]}'; "
        "img-src 'self' file: data:; base-uri 'none'; form-action 'none'"
    )


def _template() -> jinja2.Template:
    pages = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    pages.loader = jinja2.FileSystemLoader(TEMPLATES)
    pages.filters.update(percent=_percent, visible=visible)
    return pages.get_template("page.html.j2")


def _percent(share: float) -> str:
    """A share for people: never 0 % or 100 % of what is neither."""
    if 0 < share < 0.001 or 0.999 < share < 1:
        return "under 0.1 %" if share < 0.5 else "over 99.9 %"
    return f"{share * 100:.1f} %".replace(".0 %", " %")
