"""Diffusers pipelines: load them, find their networks, compute their inputs."""
