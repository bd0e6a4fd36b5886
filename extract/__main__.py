from extract.cli import main

main(prog_name="python -m extract")
