import dataclasses
import html.parser
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from fabricate import make_findings, refuses
from PIL import Image

from find import page as pages
from find import review
from find.findings import Findings, Group, Threshold
from find.page import write_page

EVIL = [
    "</script><script>alert(1)</script>.png",
    "a/<img src=x onerror=alert(1)>.png",
    "a/\"quotes\" & 'apostrophes'.png",
    "a/new\nline.png",
    "a/100%23 #1 ?x=1.png",
    "a/{{ 7 * 7 }}{% raw %}.png",
    "a/\u202egnp.exe\u200f.png",
    "a/" + "x" * 250 + ".png",
    "<!--.png",
    "=cmd|' /C calc'!A0.png",
    os.fsdecode(b"a/\xff\xfe.png"),
    "a/日本\u2028.png",
]


class Page(html.parser.HTMLParser):
    """Every element of a page, and the text of its scripts and styles."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": [], "title": []}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_data(self, data):
        if self.elements and (tag := self.elements[-1][0]) in self.inside:
            self.inside[tag][-1] += data

    @property
    def data(self) -> dict:
        return json.loads(self.inside["script"][0])


def test_names_stay_text(tmp_path):
    names = [*EVIL, "constructor", "__proto__"]
    groups = (Group(EVIL[0], 2, (0, 1), ()),)
    findings = make_findings(EVIL, names=names, flagged=3, conclusion=EVIL[1], groups=groups, settings={EVIL[0]: EVIL})
    page = Page(write_page(dataclasses.replace(findings, root=str(tmp_path / EVIL[10])), tmp_path / "out"))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 2
    assert "img" not in tags
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert (page.data["path"][:3], page.data["path"][10]) == (EVIL[:3], r"a/\udcff\udcfe.png")
    assert page.data["urls"] == {r"a/\udcff\udcfe.png": "a/%FF%FE.png"}
    assert page.data["names"][page.data["own"][0]] == EVIL[0]


def test_the_page_asks_nobody_for_anything(tmp_path):
    page = Page(write_page(make_findings([f"{i}.png" for i in range(5)], flagged=2), tmp_path))
    assert not {"link"} & {tag for tag, attributes in page.elements if attributes.get("href") != "data:,"}
    keys = ("src", "href", "srcset")
    sources = {attributes[key] for _, attributes in page.elements for key in keys if key in attributes}
    assert sources == {"data:,", "#list", "#how", "findings.csv", "findings.json"}
    asking = r"https?:|@import|url\(|fetch\(|XMLHttpRequest|WebSocket|import\(|sendBeacon|innerHTML|eval\("
    assert not any(re.search(asking, text) for text in [*page.inside["style"], page.inside["script"][1]])
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy


def test_pictures_are_upright_on_white_and_of_a_useful_size(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (3000, 1500), "red").save(root / "large.jpg", exif=exif)
    Image.new("RGBA", (32, 32), (255, 0, 255, 0)).save(root / "clear.png")
    Image.fromarray(np.full((40, 40), 128 << 8, np.uint16)).save(root / "grey16.png")
    Image.new("CMYK", (200, 100)).save(root / "cmyk.jpg")
    palette = Image.new("P", (16, 16))
    palette.putpalette([255, 0, 255] * 256)
    palette.save(root / "palette.png", transparency=0)
    (root / "broken.png").write_bytes(b"no image")
    files = ["large.jpg", "clear.png", "grey16.png", "cmyk.jpg", "palette.png", "broken.png", "gone.png"]
    thumbnails = np.full((7, 32, 32, 3), 77, np.uint8)
    page = Page(write_page(make_findings(files, flagged=3, root=root), tmp_path / "out", thumbnails=thumbnails))
    folder = tmp_path / "out/pictures" / page.data["digest"]
    made = {name: Image.open(folder / page.data["pictures"][str(i)]) for i, name in enumerate(files)}
    assert {name: image.size for name, image in made.items()} == {
        "large.jpg": (256, 512),
        "clear.png": (32, 32),
        "grey16.png": (40, 40),
        "cmyk.jpg": (200, 100),
        "palette.png": (16, 16),
        "broken.png": (32, 32),
        "gone.png": (32, 32),
    }
    middles = {name: image.convert("RGB").getpixel((8, 8)) for name, image in made.items()}
    assert middles["clear.png"] == middles["palette.png"] == middles["cmyk.jpg"] == (255, 255, 255)
    assert middles["grey16.png"] == (128, 128, 128)
    assert middles["broken.png"] == middles["gone.png"] == (77, 77, 77)
    assert "2 pictures are the store's thumbnails" in (tmp_path / "out/index.html").read_text()


def test_reviews_are_said_and_are_the_marks_to_begin_with(tmp_path):
    reviews = {"a": "keep", "b": "keep", "c": "wrong"}
    findings, _ = review.apply(make_findings(list("abc"), flagged=2), reviews, list("abc"), ["train"] * 3)
    page = write_page(findings, tmp_path)
    assert "Your reviews are in it: 1 wrong, 2 keep." in page.read_text()
    assert Page(page).data["review"] == {"0": "wrong", "1": "keep", "2": "keep"}


def test_only_the_first_have_pictures_and_where_there_is_no_file_the_thumbnail(tmp_path):
    root = tmp_path / "in"
    root.mkdir()
    for i in range(12):
        Image.new("RGB", (8, 8)).save(root / f"{i}.png")
    page = Page(write_page(make_findings([f"{i}.png" for i in range(12)], root=root), tmp_path / "out", previews=6))
    assert sorted(page.data["pictures"]) == [str(i) for i in range(6)]
    assert page.data["rootUrl"] == root.as_uri()
    gone = Page(write_page(make_findings(["gone.png"], root=tmp_path), tmp_path / "gone"))
    assert gone.data["pictures"] == {}
    findings, thumbnails = make_findings(["train/0", "train/1"], flagged=1), np.zeros((2, 32, 32, 3), np.uint8)
    page = Page(write_page(findings, tmp_path / "none", thumbnails=thumbnails, previews=1))
    assert (page.data["pictures"], page.data["rootUrl"]) == ({"0": "0.png", "1": "1.png"}, "")


def test_a_page_of_another_is_not_written_over(tmp_path):
    findings = make_findings(["a.png"])
    for _ in range(2):
        write_page(findings, tmp_path / "ours")
    (tmp_path / "index.html").write_text("<h1>My home page</h1>")
    for write in (write_page, Findings.write):
        refuses("holds files that are not ours", write, findings, tmp_path)
    refuses("is a file: give a folder", write_page, findings, tmp_path / "index.html")
    assert (tmp_path / "index.html").read_text() == "<h1>My home page</h1>"
    assert {file.name for file in tmp_path.iterdir()} == {"ours", "index.html"}


def test_results_have_their_own_marks_and_pictures(tmp_path):
    results = [make_findings(list(names), flagged=flagged) for names, flagged in (("ab", 1), ("ac", 1), ("ab", 2))]
    digests = {Page(write_page(each, tmp_path)).data["digest"] for each in results}
    assert len(digests) == 3


@pytest.mark.parametrize("mode", ["odd", "audit"])
def test_nothing_is_said_clearly(tmp_path, mode):
    text = write_page(make_findings(["a", "b"], mode=mode), tmp_path).read_text()
    assert "None is flagged" in text
    assert "nothing odd here" in Page(tmp_path / "index.html").inside["title"][0]
    text = write_page(make_findings([], mode=mode, typical={}), tmp_path).read_text()
    assert "There is nothing to show" in text


def test_what_cannot_be_promised_or_judged_and_several_groups_are_said(tmp_path):
    thresholds = {"foreign": Threshold(0.1, 0, None, "There are few images <20>.")}
    findings = make_findings(["a"], thresholds=thresholds, too_small={"owl & co": 2, "bat": 0})
    text = write_page(findings, tmp_path).read_text()
    assert "There are few images &lt;20&gt;." in text
    assert "<bdi>owl &amp; co</bdi> (2), <bdi>bat</bdi> (empty)." in " ".join(text.split())
    groups = tuple(Group(f"group {i}", 10 * i, (i,), ()) for i in (3, 2, 1))
    text = write_page(make_findings(["a"], mode="odd", groups=groups), tmp_path).read_text()
    assert "There are 3 groups in this folder" in text
    assert "30 images" in text


def test_a_picture_that_would_fill_the_memory_is_left_out(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(pages, "MAX_PIXELS", 100)
    assert pages.make_pictures({0: tmp_path / "bomb.png"}, tmp_path / "out") == {}
