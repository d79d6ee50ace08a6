"""Unlearning methods: one LightningModule a file."""
