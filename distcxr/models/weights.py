"""Pretrained weights: downloads ImageNet's, and loads weights into a network, all of them or with an error.

Nothing here unpickles code: torchvision's files are read with `weights_only=True`, timm's are safetensors. `importers`
reads users' own files.
"""

from __future__ import annotations

import logging
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

SOCKET_TIMEOUT_S = 20.0
PROBE_TIMEOUT_S = 5.0
_SHOWN = 5
_BATCH_COUNTER = "num_batches_tracked"
_OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|conv))\.(?=[12]\.)")


class WeightsUnavailable(ValueError):
    """Pretrained weights are neither on this machine nor can be downloaded; the message has where to put them."""


def load_backbone(network: nn.Module, state: dict[str, Tensor], *, source: str, but: Sequence[str] = ()) -> None:
    """Copy a state dict into the network, in place; all of it or an error.

    - First-convolution weights for 3 channels are summed when the network takes 1; those for 1 channel are shared out
      over 3. Either way a grey image, repeated in equal channels, gives what it gave before.
    - Files from before BatchNorm counted its batches are read: the counter matters only to `momentum=None`.

    Args:
        state: by the network's own names.
        source: the weights' name in messages, a path or a name.
        but: names that stay as they are, those of the head.

    Raises ValueError: any other key is missing, unexpected or of another shape; with counts and first names.
    """
    own = {key: value for key, value in network.state_dict().items() if key not in but}
    first = f"{first_conv(network)[0]}.weight"
    if first in state:
        state = state | {first: _fit_channels(state[first], own[first])}
    if not any(key.endswith(_BATCH_COUNTER) for key in state):
        state = state | {key: value for key, value in own.items() if key.endswith(_BATCH_COUNTER)}
    faults = {
        "missing from the file": [key for key in own if key not in state],
        "not in the model": [key for key in state if key not in own],
        "of another shape": [
            f"{key} {list(state[key].shape)} (model: {list(own[key].shape)})"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ],
    }
    if any(faults.values()):
        found = "; ".join(f"{len(keys)} {fault}: {_first(keys)}" for fault, keys in faults.items() if keys)
        raise ValueError(f"{source} does not fit model.name, model.library and model.in_chans: {found}")
    network.load_state_dict(state, strict=False)  # checked above: only what `but` names is missing


def remap_densenet_keys(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A new dict with the keys of old DenseNet files, `denselayer3.norm.1.weight`, as `denselayer3.norm1.weight`.

    torchvision's own ImageNet files have the old names. Skipped, as `strict=False` does, they leave the dense
    layers untrained in a network that still runs: AUROC .49 [arnoweng/CheXNet#34].
    """
    return {_OLD_DENSENET_KEY.sub(r"\1", key): value for key, value in state.items()}


def first_conv(model: nn.Module) -> tuple[str, nn.Conv2d]:
    """Name and layer of the convolution that sees the image: the one registered first.

    Raises ValueError: the network has none.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            return name, module
    raise ValueError(f"{type(model).__name__} has no 2-D convolution: it can't be given grey images")


def make_first_conv_grey(model: nn.Module) -> None:
    """Let a network for 3 channels take 1, in place: the first convolution's weights are summed over them.

    So a grey image gives the activations that it gave repeated in three equal channels.
    Raises ValueError: the first convolution does not have 3 input channels.
    """
    name, conv = first_conv(model)
    if conv.in_channels != 3 or conv.groups != 1:
        raise ValueError(f"model.in_chans=1: {name} takes {conv.in_channels} channels where 3 were expected")
    conv.in_channels = 1
    conv.weight = nn.Parameter(conv.weight.detach().sum(dim=1, keepdim=True))


def fetch_torch_file(url: str) -> dict[str, Tensor]:
    """State dict of one of PyTorch's own files, from torch.hub's folder or from the network.

    Raises WeightsUnavailable: it is in neither, or the file is damaged.
    """
    file = hub_folder() / Path(urlparse(url).path).name
    try:
        with _socket_timeout(SOCKET_TIMEOUT_S):  # torch.hub sets none and would hang behind a silent firewall
            state: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
                url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
    except OSError as error:
        raise WeightsUnavailable(where_to_put(url, file, error)) from error
    except (RuntimeError, UnpicklingError, EOFError) as error:
        advice = f"{file} is damaged ({error}): delete it. {where_to_put(url, file, None)}"
        raise WeightsUnavailable(advice) from error
    return state


def fetch_timm_file(cfg: Any) -> Path:
    """The safetensors file of a timm `PretrainedCfg`: placed by hand, in Hugging Face's cache, or downloaded.

    Raises WeightsUnavailable: it is in none of these; ValueError: timm has no safetensors file for this model.
    """
    name = f"{cfg.architecture}.{cfg.tag}" if cfg.tag else str(cfg.architecture)
    placed = hub_folder() / f"{name}.safetensors"
    if placed.is_file():
        return placed
    file_name = cfg.hf_hub_filename or "model.safetensors"
    if not cfg.hf_hub_id or not file_name.endswith(".safetensors"):
        raise ValueError(
            f"model.weights=imagenet: timm has no safetensors file for {name}; choose another model, "
            "model.weights=PATH with a safetensors file, or model.weights=none"
        )
    repo, _, revision = cfg.hf_hub_id.partition("@")
    return fetch_hub_file(repo, file_name, placed, revision=revision or None)


def fetch_hub_file(repo: str, file_name: str, placed: Path, *, revision: str | None = None, more: str = "") -> Path:
    """A file of a repository on Hugging Face's hub, in its cache or downloaded.

    The hub is asked once whether it is there: its client retries for 46 s without a network (measured), longer behind a
    silent firewall.

    Args:
        placed: where it may be put by hand, for the message.
        more: what else that has, after its address.

    Raises WeightsUnavailable: it is in neither, or the hub does not give it out.
    """
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    wanted: Any = {"repo_id": repo, "filename": file_name, "revision": revision}
    url = huggingface_hub.hf_hub_url(**wanted)
    try:
        return Path(huggingface_hub.hf_hub_download(**wanted, local_files_only=True))
    except OSError:
        logger.info(f"downloading {url}")
    try:
        probe(url)
        return Path(huggingface_hub.hf_hub_download(**wanted))
    except (OSError, EntryNotFoundError, HfHubHTTPError) as error:
        raise WeightsUnavailable(where_to_put(url, placed, error, more=more)) from error


def hub_folder() -> Path:
    """Folder in which torch.hub keeps weights (`TORCH_HOME` moves it); files put there by hand are found."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def where_to_put(url: str, file: Path, error: Exception | None, *, more: str = "") -> str:
    """What to do about weights that are not here."""
    because = f"can't download the weights ({error}). " if error else ""
    return (
        f"{because}Fetch {url}{more} on a machine with a network and put it here as {file}; "
        "or set model.weights=PATH to weights of this model, or model.weights=none to train from scratch"
    )


def probe(url: str) -> None:
    """Raise OSError unless the host answers, with whatever status."""
    parts = urlparse(url)
    try:
        urlopen(Request(f"{parts.scheme}://{parts.netloc}", method="HEAD"), timeout=PROBE_TIMEOUT_S).close()
    except HTTPError as answer:
        answer.close()


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _fit_channels(found: Tensor, own: Tensor) -> Tensor:
    if found.ndim != 4 or own.ndim != 4:
        return found
    if found.shape[1] == 3 and own.shape[1] == 1:
        return found.sum(dim=1, keepdim=True)
    if found.shape[1] == 1 and own.shape[1] == 3:
        return found.expand(-1, 3, -1, -1) / 3
    return found


def _first(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
