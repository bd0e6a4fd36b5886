"""The benchmark's peers do the same work as the project, and its report becomes a table and a chart."""

import numpy as np
import torch
from PIL import Image

from bench.__main__ import table
from bench.cases import _task
from bench.chart import draw
from bench.peers import TutorialHead, TutorialSets
from bench.timing import interleaved
from train.config import Config
from train.methods import build_method

RATE = {"median": 200.0, "low": 150.0, "high": 250.0, "rounds": 3}
REPORT = {
    "machine": {"cpu": "a CPU", "threads": 2},
    "versions": {"torch": "2"},
    "sections": {
        "extraction": {
            "about": "Images a second.",
            "unit": "images/s",
            "rates": {
                "tutorial": {"median": 100.0, "low": 90.0, "high": 100.0, "rounds": 3},
                "ours": RATE,
                "roof: product": RATE,
            },
        },
        "start_up": {"about": "Processes.", "unit": "runs/s", "rates": {"--help": {**RATE, "median": 4.0}}},
    },
}


def test_cases_take_turns():
    calls = []
    rates = interleaved({name: lambda name=name: calls.append(name) or 1 for name in "ab"}, rounds=2)
    assert calls == list("ababab")  # the first round is not counted
    assert rates["a"].rounds == 2
    assert rates["a"].low <= rates["a"].median <= rates["a"].high


def test_the_tutorial_head_is_the_same_model():
    ours = build_method(Config(), 512)
    theirs = TutorialHead(512)
    assert sum(p.numel() for p in theirs.parameters()) == sum(p.numel() for p in ours.parameters())
    assert theirs(torch.randn(2, 10, 512)).shape == (2, 10)


def test_the_tutorial_samples_the_same_sets():
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
    task = _task(tmp_path / "s.h5", 500, feature_dim=8)
    assert len(task.train.rows) == 410
    assert task.feature_dim == 8


def test_a_report_becomes_a_table_and_a_chart(tmp_path):
    text = table(REPORT)
    assert "| ours | 200 | 150 – 250 | 2.00 × |" in text
    assert "cpu: a CPU" in text
    assert "| --help | 0.250 s |" in text
    draw(REPORT, tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").size[0] > 400
