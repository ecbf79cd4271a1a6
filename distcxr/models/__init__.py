"""Networks by name, their heads and their weights."""
