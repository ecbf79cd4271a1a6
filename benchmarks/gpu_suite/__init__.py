"""Tests and benchmarks that need a GPU, in parts under time limits; `benchmarks/gpu_suite.sh` starts them.

Only the standard library is imported here and in the modules that start, stop and collect: everything else may be
missing on the machine, and finding out what is belongs to the first part.
"""
