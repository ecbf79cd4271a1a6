"""The decoded cache: every image of a dataset as uint8 pixels in one file, made once, read at the speed of memory.

    cache.json             names the two files below and holds the settings; replaced in one step, when they are whole
    pixels-<build>.u8      uint8 [N, S, S], no header
    entries-<build>.npy    `entry_type` [N], sorted by path: the source file as it was read, and both checksums
    building.json, .entries, lock        an unfinished build (`distcxr.data.cache.build`)

A cache is whole or not there, whatever was killed or ran full while it was made. A new build writes other files, so
it never changes what a running job has open. S is `data.image_size`, the size before `augment.crop`: a margin for
random crops is a larger image_size.

Shapes: B batch, N images, S side.
"""

from distcxr.data.cache.files import CacheError, cache_folder
from distcxr.data.cache.read import DecodedCache, open_cache
from distcxr.data.cache.staging import stage

__all__ = ["CacheError", "DecodedCache", "cache_folder", "open_cache", "stage"]
