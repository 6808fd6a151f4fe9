"""Operators' actions other than running consumers: replay, pause, status, checks."""
