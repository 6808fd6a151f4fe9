"""Plans transactions from records, without I/O."""
