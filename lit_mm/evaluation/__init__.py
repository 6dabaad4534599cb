"""Examination of a model on held-out documents: answers, metrics, scores."""
