"""Helps authors before a migration runs: new files and sections, and a trial with one row."""
