"""The rights that each program needs in Kafka and PostgreSQL."""
