"""What an operator does beside running consumers: replay, pause, status, checks."""
