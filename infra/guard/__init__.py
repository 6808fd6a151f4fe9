"""Triggers by which a database refuses writes to what it gave away."""
