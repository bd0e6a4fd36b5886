"""The benchmark's peers do the same work as the project, and its report becomes a table and a chart."""

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from fabricate import call, has_margin
from PIL import Image

from bench import extraction as extraction_section
from bench import timing
from bench.cli import main
from bench.peers import TutorialHead, TutorialSets
from bench.report import draw, make_table
from bench.timing import measure_cases
from bench.training import make_task
from train.config import Config
from train.methods.base import build_method

RATE = {"median": 200.0, "low": 150.0, "high": 250.0, "rounds": 3}
REPORT = {
    "machine": {"cpu": "a CPU", "threads": 2},
    "versions": {"torch": "2"},
    "sections": {
        "extraction": {
            "about": "Images a second.",
            "left_out": {"theirs": "it takes too long"},
            "unit": "images/s",
            "rates": {
                "tutorial": {"median": 100.0, "low": 90.0, "high": 100.0, "rounds": 3},
                "ours": RATE,
                "roof: product": RATE,
            },
        },
        "photographs": {"about": "Images.", "unit": "images/s", "rates": {"loop": {**RATE, "median": 4.0}}},
    },
}


def test_cases_take_turns():
    calls = []
    found = measure_cases({name: lambda name=name: calls.append(name) or 1 for name in "ab"}, rounds=2)
    assert calls == list("ababab")  # the first round is not counted
    assert found["left_out"] == {}
    rate = found["rates"]["a"]
    assert rate["rounds"] == 2
    assert rate["low"] <= rate["median"] <= rate["high"]


def test_what_would_take_more_than_a_minute_is_left_out_after_one_trial(monkeypatch):
    monkeypatch.setattr(timing, "LONGEST", 0.05)
    calls = []
    slow = lambda: calls.append("slow") or time.sleep(0.03) or 1  # noqa: E731
    found = measure_cases({"slow": slow, "quick": lambda: 1, "before": "for another reason"}, 2)
    assert calls == ["slow"]
    assert list(found["rates"]) == ["quick"]
    assert set(found["left_out"]) == {"before", "slow"}
    assert "2 rounds would take" in found["left_out"]["slow"]


@pytest.mark.parametrize("fast", [False, True])
def test_bfloat16_is_measured_where_it_gains_and_else_left_out_with_the_reason(monkeypatch, fast):
    monkeypatch.setattr(timing, "fast_bfloat16", lambda device: fast)
    case = timing.make_roofs(1e9)["roof: product in bfloat16"]
    assert callable(case) if fast else case == timing.NOT_FASTER


def test_the_engines_that_are_measured_are_those_that_are_here(monkeypatch):
    from extract import engines
    from extract.backbones import load_backbone

    monkeypatch.setattr(engines, "fast_bfloat16", lambda device: False)
    monkeypatch.setattr(extraction_section, "available", lambda device: ["torch"])
    built = extraction_section.build_engines(load_backbone("resnet18", "random", 0, 32))
    left_out = [name for name, engine in built.items() if isinstance(engine, str)]
    assert left_out == ["torch bfloat16", "torch bfloat16 after 3 layers in float32"]
    assert list(built) == ["torch float32", *left_out]


def test_the_tutorial_has_the_same_model_and_samples_the_same_sets():
    ours = build_method(Config(), 512)
    theirs = TutorialHead(512)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    assert theirs(torch.randn(2, 10, 512)).shape == (2, 10)
    labels = np.repeat(np.arange(4), 30)
    sets = TutorialSets(torch.arange(120.0)[:, None], labels, 10)
    for index in (0, 45, 119):
        features, target = sets[index]
        rows = features[:, 0].long().numpy()
        assert rows[target] == index
        others = np.delete(rows, target)
        assert len(set(others)) == 9
        assert len(set(labels[others])) == 1
        assert labels[others[0]] != labels[index]


def test_the_task_has_about_the_images_that_were_asked_for(tmp_path):
    task = make_task(tmp_path / "s.h5", 500, feature_dim=8)
    assert len(task.train.rows) == 410
    assert task.feature_dim == 8


def test_a_report_becomes_tables_and_a_chart_of_which_nothing_is_cut_off(tmp_path):
    text = make_table(REPORT)
    assert "| extraction | ours | 200 images/s | 150 – 250 | 2.00 × |" in text
    assert "a CPU, 2 threads" in text
    assert "Left out: extraction, theirs (it takes too long)" in text
    assert "| photographs | loop | 4 images/s | 150 – 250 | 1.00 × |" in text
    draw(REPORT, tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").size[0] > 400
    draw(json.loads((Path(__file__).parents[1] / "bench/report.json").read_text()), tmp_path / "chart.png")
    assert has_margin(tmp_path / "chart.png")
    text = make_table(REPORT, short=True)
    assert "| extraction | ours | 200 images/s | 2.00 × |" in text
    assert "extraction, theirs (it takes too long)" in text
    assert "loop" not in text


def test_a_section_in_which_all_was_left_out_is_no_error(tmp_path):
    empty = {"about": "None.", "unit": "sets/s", "rates": {}, "left_out": {"ours": "too slow"}}
    report = {**REPORT, "sections": {"training": empty, "rows": empty}}
    assert "training, ours (too slow)" in make_table(report)
    assert "training, ours (too slow)" in make_table(report, short=True)
    draw(report, tmp_path / "chart.png")


def test_a_section_says_what_it_is_about_and_runs_in_a_process_of_its_own(tmp_path):
    call(main, "--out", tmp_path / "report.json", "--rounds", 1, "--only", "sampling")
    section = json.loads((tmp_path / "report.json").read_text())["sections"]["sampling"]
    assert section["about"].startswith("Sets a second of index work alone")
    assert set(section["rates"]) == {"tutorial: one set at a time", "this project"}


def test_the_pages_table_and_its_chart_are_written(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(REPORT))
    readme = tmp_path / "README.md"
    readme.write_text("<!-- measured: speed -->\n<!-- end -->\n")
    command = ["--out", tmp_path / "report.json", "--readme", readme]
    assert call(main, *command).stderr == f"rewritten: {readme}\n"
    assert "2.00 ×" in readme.read_text()
    assert Image.open(tmp_path / "images/benchmark.png").size[0] > 400
    assert call(main, *command).stderr == ""
