"""The tour, `docs/tour.ipynb`: what is printed in it is true, and it runs."""

import json
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOUR = ROOT / "docs/tour.ipynb"


def printed(notebook):
    """All that the code of a notebook printed."""
    outputs = [each for cell in notebook["cells"] for each in cell.get("outputs", ())]
    return "".join("".join(each["text"]) for each in outputs if each["output_type"] == "stream")


def require_a_good_end(notebook):
    text = printed(notebook)
    assert "1,797 images, 512 numbers each, of the classes 0, 1" in text
    assert float(re.search(r"test top-1 ([\d.]+) %", text)[1]) > 90
    assert "the odd one is number 7" in text
    assert "of 63 images 3 do not belong here" in text
    counts = re.search(r"(\d+) labels are flagged, (\d+) of them rightly; (\d+) were", text)
    flagged, right, changed = map(int, counts.groups())
    assert right > 0.8 * flagged
    assert right > 0.7 * changed
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    pictures = [each for cell in code for each in cell["outputs"] if "image/png" in each.get("data", ())]
    assert len(pictures) == 4
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))


def test_the_outputs_in_it_are_those_of_a_good_run_and_its_links_lead_somewhere():
    require_a_good_end(json.loads(TOUR.read_text(encoding="utf-8")))
    assert TOUR.stat().st_size < 1 << 20
    text = "\n".join("".join(cell["source"]) for cell in json.loads(TOUR.read_text(encoding="utf-8"))["cells"])
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) == 3
    assert [link for link in links if not (TOUR.parent / link).exists()] == []


@pytest.mark.slow
def test_it_runs(tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient", reason="nbclient is missing: pip install '.[dev]'")
    pytest.importorskip("ipykernel", reason="ipykernel is missing: pip install '.[dev]'")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    notebook = nbformat.read(TOUR, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    resources = {"metadata": {"path": tmp_path}}
    client.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    require_a_good_end(notebook)
