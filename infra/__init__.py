"""The edges: settings, log, PostgreSQL, Kafka, registry, topics and the embedded stack."""
