"""From an override to a checked, typed run."""
