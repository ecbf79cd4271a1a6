"""What `benchmarks/step.py` and `benchmarks/epoch.py` are made of."""
