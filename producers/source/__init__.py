"""Manages a source in PostgreSQL: tables, publication, slot, and preflight checks."""
