"""The platform as child processes of one command, with an embedded PostgreSQL and Kafka-protocol broker."""
