"""Train one run: its directory, checkpoints, loggers, signals."""
