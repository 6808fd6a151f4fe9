"""Praefect's records, and the storage walks that they are compared with."""
