"""Turns messages of the stream and rows of snapshots into Kafka records."""
