"""Temperature, loss, learning rate and batch size, found by trials on rows that the evaluation never sees."""
