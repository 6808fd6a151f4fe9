"""Migrations at work: read topics, write databases. Never imports producers."""
