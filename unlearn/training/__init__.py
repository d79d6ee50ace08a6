"""Train one run: its directory, its checkpoints, its loggers and its signals."""
