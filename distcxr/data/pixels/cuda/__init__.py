"""What the GPU does for pixels: kernels in CUDA C, how they are compiled and launched, and nvCOMP's inflate."""
