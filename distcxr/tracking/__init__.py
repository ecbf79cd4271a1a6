"""A run's progress in TensorBoard, at services and on the terminal. Takes dicts and arrays."""
