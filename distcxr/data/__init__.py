"""Which images, which labels, who may see them, in which order, and how bytes become batches."""
