"""Images to grey uint8 [H, W]: PNG, JPEG, DICOM, HTJ2K; and resizing. On a CPU or GPU, exact against references."""
