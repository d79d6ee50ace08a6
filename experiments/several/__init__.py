"""Forgetting and retention by the number of concepts."""
