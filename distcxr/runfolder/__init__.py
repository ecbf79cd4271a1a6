"""The run folder: file names, atomic writes, the lock, checkpoint folders, and readers. Without torch or engine."""
