"""PostgreSQL as child processes."""
