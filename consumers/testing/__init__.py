"""Tests the contract of a migration on real servers: for headrace's own, and for authors through a pytest plugin."""
