"""Inference: answers of a model by decoding with a cache."""
