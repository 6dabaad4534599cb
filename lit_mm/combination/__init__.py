"""Which parts go together, decided from the properties that each declares."""
