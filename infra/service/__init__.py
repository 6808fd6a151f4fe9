"""Log, metrics and signal handling of services."""
