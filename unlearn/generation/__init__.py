"""Draw images, seeded and batched, and keep them on disk."""
