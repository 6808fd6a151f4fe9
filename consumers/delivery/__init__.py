"""What a consumer has to do with Kafka: its group, its topics, the topic of dead letters."""
