"""What producers record of their sources."""
