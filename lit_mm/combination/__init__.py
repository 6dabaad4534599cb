"""Legal combinations of parts, decided from the properties of each part."""
