"""The pack: every image of a dataset at full size, lossless, in a few hundred files instead of 112,120.

    pack.json                     names the files below; replaced in one step, when they are whole
    entries-<build>.npy           `entry_type` [N], sorted by path: the source as it was read, place and checksum
    shard-<number>-<build>.j2k    about 1,024 HTJ2K codestreams in a row, then what is known of them
    shard-*.part, lock            a build that is under way

A shard tells by itself what it holds, and has its name only once it is whole. So a build that was stopped goes on with
the shards it has, and even without pack.json nothing need be encoded again. A new build writes other files and removes
those that it replaces after pack.json; `Pack` holds all shards open, so a job that runs on the same machine reads on.

Shapes: N images, H, W.
"""

from distcxr.data.pack.files import PackError, pack_folder
from distcxr.data.pack.read import Pack, open_pack

__all__ = ["Pack", "PackError", "open_pack", "pack_folder"]
