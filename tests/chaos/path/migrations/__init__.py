"""The harness's own migrations, available next to headrace's in its test build (build.py)."""
