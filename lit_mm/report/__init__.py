"""Reports of a run for people: curves, sample sheets, tables, summary."""
