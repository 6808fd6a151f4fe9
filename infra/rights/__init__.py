"""What each program needs to be allowed, in Kafka and PostgreSQL."""
