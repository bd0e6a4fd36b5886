from common.command_line import stoppable

with stoppable():  # from here, since what the command line imports takes a moment, too
    from train.cli import main

    main(prog_name="python -m train")
