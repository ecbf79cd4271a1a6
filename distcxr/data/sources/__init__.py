"""Label files, one module for each dataset: each reads them into a `distcxr.data.index.SampleIndex`."""
