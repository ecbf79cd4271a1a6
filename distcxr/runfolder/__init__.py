"""The run folder: its file names, how they are written whole, who may write, and readers. No torch, no engine."""
