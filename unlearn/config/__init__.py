"""Turn command-line overrides into a checked, typed run."""
