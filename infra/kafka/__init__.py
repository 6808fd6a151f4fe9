"""Kafka: clients, topics, errors."""
