"""Changed weights: files of our own, and weights from elsewhere."""
