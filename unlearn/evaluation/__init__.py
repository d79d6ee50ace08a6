"""Measure what a model forgot and kept."""
