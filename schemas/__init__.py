"""Pure contracts: events, positions, gitlab schemas, Avro. Imports nothing of ours and does no I/O."""
