"""Where Avro schemas are kept."""
