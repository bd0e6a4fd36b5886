"""What both stages must agree on: the feature store, files, checks, configuration and run folders."""
