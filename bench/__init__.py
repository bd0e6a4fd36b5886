"""What `make bench` measures: the project beside the ways it competes with, in one run."""
