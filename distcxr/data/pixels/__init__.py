"""Image decoding and resizing: PNG, JPEG, DICOM, HTJ2K to grey uint8 [H, W], on a CPU or GPU, exact against references."""
