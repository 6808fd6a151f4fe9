"""Sources: read a database or a git storage, write topics. Never imports consumers."""
