"""Comparing topics with tables."""
