"""Synthetic chest X-rays for the quickstart, tests and benchmarks: `dataset.write_phantom` is the way in."""
