"""Data engines: experts describe images, filters drop what does not match, and the rest becomes a data set."""
