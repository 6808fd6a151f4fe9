"""From messages of the log, and rows of a snapshot, to records in Kafka."""
