"""The data of a run: label files, splits, sampling and order, decoding of images, loaders and augmentation."""
