import runpy
from pathlib import Path

runpy.run_path(str(Path(__file__).resolve().parents[1] / "common/start.py"))["run_stage"]("train")
