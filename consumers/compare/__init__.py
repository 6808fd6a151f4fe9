"""Compares topics with tables."""
