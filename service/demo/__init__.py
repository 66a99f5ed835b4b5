"""The demo: learns what Python's documentation means, and shows what that was worth."""
