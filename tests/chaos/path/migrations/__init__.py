"""Migrations of the harness's own, found beside headrace's in its test build (build.py)."""
