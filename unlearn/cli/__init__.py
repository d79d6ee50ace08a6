"""The console script, with one module for each command."""
