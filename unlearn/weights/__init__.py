"""Changed weights: the project's own files, and weights from elsewhere."""
