"""Stores: what is made once from all images of a dataset, so that training need not read the image files again.

Two formats share their building, resuming, checking and locking:

    cache   every image decoded and resized, uint8 [N, S, S] in one file, read at the speed of memory
    pack    every image at full size, lossless, in a few hundred files instead of 112,120

    <format>.json          names the files below and has the settings; replaced in one step, when they are whole
    entries-<build>.npy    one row per image, sorted by path: the source file as it was read, and checksums
    pixels-<build>.u8      the cache's pixels, without a header; or
    shard-*-<build>.j2k    the pack's shards (`pack_shards.py`)
    building.json, .entries, shard-*.part, lock        a build that is under way

A store is whole or not there, whatever was killed or ran full while it was made. A new build writes other files and
removes the replaced ones last, and an open store holds its files open: a running job is never disturbed.

Shapes: B batch, N images, H, W, S side.
"""
