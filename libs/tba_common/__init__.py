"""What every process of the platform shares: nouns, topics, tasks, and the doors to Kafka and to weights."""
