"""Unlearning methods, a LightningModule a file."""
