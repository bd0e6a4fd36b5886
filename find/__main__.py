import sys
from pathlib import Path

# Python looks into the folder in which it is started first: somebody's own train.py or common.py there is not ours
if Path(sys.path[0]) == Path.cwd() != Path(__file__).resolve().parents[1]:
    del sys.path[0]

from common.command_line import stoppable

with stoppable():  # from here, since what the command line imports takes a moment, too
    from find.cli import main

    main(prog_name="python -m find")
