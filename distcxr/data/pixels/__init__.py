"""Image codecs: bytes to grey uint8 and back, each exact against its reference."""
