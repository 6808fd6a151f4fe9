"""What every service has: log, metrics, signals."""
