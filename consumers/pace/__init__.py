"""Batch sizes and rate limits."""
