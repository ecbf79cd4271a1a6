"""PNG decoding on a GPU: kernels in CUDA C, how they are compiled and launched, and nvCOMP's inflate."""
