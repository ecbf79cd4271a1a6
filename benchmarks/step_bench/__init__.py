"""The parts of `benchmarks/step.py` and `benchmarks/epoch.py`."""
