"""One file per resource. A route parses, calls storage or inference, and answers; it knows no SQL and no torch."""
