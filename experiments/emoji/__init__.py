"""From emoji art to the embedded model."""
