"""Health indicators, one per file. Every module in this package is scanned; no list needs editing."""
