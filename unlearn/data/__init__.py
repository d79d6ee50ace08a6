"""Images and batches to train on."""
