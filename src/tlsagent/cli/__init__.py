"""The command line, written with the public names alone. Needs the extras `cli` and `testing`."""
