"""Any reader of files, given pieces of a pack's shards instead."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from distcxr.data.loader import PixelReader, Pixels, Request
from distcxr.data.pack import Pack


class PackReader:
    """A `PixelReader` that tells another one where in a pack the images of each request are."""

    def __init__(self, inner: PixelReader, pack: Pack) -> None:
        """Take both over: `close` closes them.

        Args:
            pack: open for the index whose rows requests name.
        """
        self._inner, self._pack = inner, pack
        num = len(pack.shards)
        self.where = f"{inner.where}; their bytes come from the {num} shard{'s' * (num != 1)} in {pack.folder}"

    def read(self, requests: Iterable[Request]) -> Generator[Pixels]:
        """Pixels of each request, in order; the files that it names are not looked at."""
        return self._inner.read(Request(request.sample_id, self._pack.parts(request.sample_id)) for request in requests)

    def close(self) -> None:
        """Close the reader, then the shards, which its workers may be reading until then."""
        self._inner.close()
        self._pack.close()
