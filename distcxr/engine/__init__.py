"""Training and evaluation: what holds the other rooms together."""
