"""Answers of a model: decoding with a cache."""
