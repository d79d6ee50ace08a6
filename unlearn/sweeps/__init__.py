"""Many runs: the jobs of a sweep, a search, a pool of processes."""
