"""Run by each `__main__`: starts the command line of a stage, safe from files of the user with our modules' names."""

import sys
from pathlib import Path

# `python -m` looks into the current folder first, where a train.py or common.py of the user may be
if sys.path[0] and Path(sys.path[0]).resolve() == Path.cwd() != Path(__file__).resolve().parents[1]:
    del sys.path[0]

from common.command_line import run_stage as run_stage
