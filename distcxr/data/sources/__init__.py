"""Readers of label files, one module a dataset: each returns a `distcxr.data.index.SampleIndex`."""
