"""Adapters to the outside: settings, log, PostgreSQL, Kafka, schema registry and the embedded stack."""
