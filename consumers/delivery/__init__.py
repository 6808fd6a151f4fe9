"""Access to Kafka: the consumer group, source topics and dead letters."""
