from common.command_line import stoppable

with stoppable():  # from here, since what the command line imports takes a moment, too
    from extract.cli import main

    main(prog_name="python -m extract")
