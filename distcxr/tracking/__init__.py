"""Seeing a run: TensorBoard, pictures and the terminal. Takes plain dicts and arrays, knows nothing of the engine."""
