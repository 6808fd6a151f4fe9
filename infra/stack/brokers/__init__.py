"""Kafka as child processes."""
