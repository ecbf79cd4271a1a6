"""Synthetic chest X-rays for the quickstart, tests and benchmarks, written by `dataset.write_phantom`."""
