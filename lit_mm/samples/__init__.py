"""Samples and batches: a document laid out as token ids, labels and views; several collated into one batch."""
