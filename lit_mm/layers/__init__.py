"""Small blocks that several parts use."""
