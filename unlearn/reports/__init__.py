"""Read finished runs and compare them."""
