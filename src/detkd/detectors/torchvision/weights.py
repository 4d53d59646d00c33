"""torchvision's published weights: found on disk or downloaded, read without running code from the file."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from detkd.detectors.files import cache_dir, shared_weights_dir
from detkd.disk import sha256_of
from detkd.errors import InputError


def published_url(architecture: str, weights: str) -> str:
    """The address of a weights enum member such as "COCO_V1". Raises InputError that lists the members there are."""
    members = get_model_weights(architecture).__members__
    if weights not in members:
        raise InputError(f"weights: expected one of {sorted(members)} for {architecture}, got {weights!r}")
    return str(members[weights].value.url)


def weight_folders() -> list[Path]:
    """Where weights are looked for, in order: detkd's cache, the shared weights, torch.hub's checkpoints ($TORCH_HOME)."""
    return [cache_dir(), shared_weights_dir(), Path(torch.hub.get_dir()) / "checkpoints"]


def fetch(url: str) -> Path:
    """Find the file of ``url`` on disk, else download it to $DETKD_CACHE if set, else to torch.hub's checkpoints.

    The name carries the first digits of the file's sha256, which are checked.
    Raises InputError naming the address and the places where the file may be put when it cannot be had, or its hash is wrong.
    """
    name = Path(urlparse(url).path).name
    folders = weight_folders()
    for folder in folders:
        if (found := folder / name).is_file():
            _check_hash(found)
            return found
    target = (folders[0] if os.environ.get("DETKD_CACHE") else folders[-1]) / name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), _hash_of(name), progress=False)
    except (OSError, RuntimeError) as error:
        places = " or ".join(str(f) for f in folders)
        raise InputError(f"weights: could not download {url} ({error}); put the file {name} into {places}") from error
    return target


def load_published(network: nn.Module, architecture: str, weights: str) -> None:
    """Load a weights enum member into a torchvision network. Raises InputError when the file is missing or does not fit."""
    path = fetch(published_url(architecture, weights))
    try:
        state: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except Exception as error:  # torch raises whatever its zip and unpickling readers meet
        raise InputError(f"weights: expected the state dict of {architecture} in {path}, could not read it: {error}") from error


def _hash_of(name: str) -> str | None:
    found = re.search(r"-([a-f0-9]{8,})\.", name)
    return found.group(1) if found else None


def _check_hash(path: Path) -> None:
    expected = _hash_of(path.name)
    if expected is None:
        return
    if not (found := sha256_of(path)).startswith(expected):
        raise InputError(f"weights: expected a file whose sha256 starts with {expected}, got {found} in {path}")
