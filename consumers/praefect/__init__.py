"""Praefect's records, and the walks that they are compared with."""
