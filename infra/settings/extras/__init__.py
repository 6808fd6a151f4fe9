"""Settings of what headrace's extras add."""
