"""PostgreSQL: connections, the `headrace` schema, order of keys, COPY."""
