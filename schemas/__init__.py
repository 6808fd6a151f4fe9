"""Pure contracts: events, positions, gitlab schemas, Avro. Imports no other package of headrace and does no I/O."""
