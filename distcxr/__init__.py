"""Distributed multi-GPU training for chest X-ray classification."""

__version__ = "0.1.0"
