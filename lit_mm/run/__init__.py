"""A run: its folder, its stages in order, where it resumes and how it ends."""
