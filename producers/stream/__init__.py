"""Reading the log: connection, pgoutput, and transactions put together."""
