"""What exists and where it is kept: PostgreSQL rows, artifact bytes, the outbox to the queue."""
