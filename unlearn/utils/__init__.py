"""Helpers that know nothing of diffusion: files, checks, errors, secrets."""
