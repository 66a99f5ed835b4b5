"""Encoders in memory and the queue in front of them."""
