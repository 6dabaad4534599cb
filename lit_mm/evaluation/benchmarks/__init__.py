"""Benchmarks as data: one YAML file each, with the readers of their published files."""
