"""What a run leaves for people: curves, sample sheets, tables, summary."""
