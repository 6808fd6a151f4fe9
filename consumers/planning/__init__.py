"""From records to transactions, without I/O."""
