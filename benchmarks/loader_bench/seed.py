"""The baseline, as most public code reads X-rays: a Dataset of PIL images, torchvision's transforms, a DataLoader."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms


class SeedDataset(Dataset[tuple[Tensor, int]]):
    """One file a time to float32 [3, S, S] in [0, 1]."""

    def __init__(self, files: list[str], image_size: int) -> None:
        self.files = files
        self.transform = transforms.Compose([transforms.Resize((image_size, image_size)), transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.transform(Image.open(self.files[row]).convert("RGB")), row


class _Endless:
    """Batches of rows, over and over; an epoch's end would stop the workers and spoil the measurement."""

    def __init__(self, num: int, batch_size: int) -> None:
        self.num, self.batch_size = num, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for batch in count():
            yield [(batch * self.batch_size + i) % self.num for i in range(self.batch_size)]


def seed_loader(
    files: list[str], image_size: int, batch_size: int, num_workers: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches: float32 [B, 3, S, S] and row numbers."""
    dataset = SeedDataset(files, image_size)
    return iter(DataLoader(dataset, batch_sampler=_Endless(len(files), batch_size), num_workers=num_workers))
