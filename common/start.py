"""Run by each `__main__`: the command line of a stage, whatever files lie where it is started."""

import sys
from pathlib import Path

# `python -m` looks into that folder first: somebody's own train.py or common.py there is not ours
if sys.path[0] and Path(sys.path[0]).resolve() == Path.cwd() != Path(__file__).resolve().parents[1]:
    del sys.path[0]

from common.command_line import run_stage as run_stage
