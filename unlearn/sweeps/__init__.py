"""Make many runs: the jobs of a sweep, a search, and a pool of processes."""
