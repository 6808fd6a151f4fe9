"""Reports a run in one self-contained file."""
