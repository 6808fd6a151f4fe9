"""Registries of Avro schemas: a topic or a Confluent-compatible server."""
