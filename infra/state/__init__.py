"""The state that producers record about their sources."""
