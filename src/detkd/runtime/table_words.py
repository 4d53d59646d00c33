"""Keys of configs and results in plain words, for the axes of figures."""

from __future__ import annotations

import re

_SCORES = {
    "ap": "AP",
    "ap50": "AP50",
    "ap75": "AP75",
    "ap_small": "AP of small boxes",
    "ap_medium": "AP of medium boxes",
    "ap_large": "AP of large boxes",
    "teacher_ap50": "AP50 of the teacher on inverted images",
    "verifier_ap50": "AP50 of the verifier on inverted images",
    "mpc": "mean AP under corruptions",
    "mpc50": "mean AP50 under corruptions",
    "rpc": "share of the clean AP under corruptions",
    "rpc50": "share of the clean AP50 under corruptions",
}
_KEYS = {
    "data.length": "number of training images",
    "data.train_images": "number of training images",
    "n_images": "number of inverted images",
    "images": "number of images",
    "steps": "training steps",
    "batch_size": "batch size",
    "iterations": "iterations",
    "optimizer.lr": "learning rate",
}


def is_score(key: str) -> bool:
    """Whether a key of results holds a score between 0 and 1."""
    return key in _SCORES or key.startswith("per_class.")


def in_words(key: str) -> str:
    """A dotted key as text: "ap50" is "AP50 (0 to 1)", "data.length" is "number of training images", "a.b_c" is "b c of a"."""
    if is_score(key):
        return f"{_SCORES.get(key) or 'AP of ' + key.partition('.')[2]} (0 to 1)"
    if key in _KEYS:
        return _KEYS[key]
    rest, _, last = key.rpartition(".")
    last = last.replace("_", " ")
    return f"{last} of {rest}" if rest else last


def broken(name: str, width: int = 26, lines: int = 2) -> list[str]:
    """A long name in lines of at most ``width`` letters, broken behind , / _ . - or a space; what is left over ends in an ellipsis."""
    found: list[str] = []
    for part in re.findall(r"[^,/_. -]*[,/_. -]?", name):  # the last is empty
        for piece in (part[k : k + width] for k in range(0, len(part), width)):
            if found and len(found[-1]) + len(piece) <= width:
                found[-1] += piece
            else:
                found.append(piece)
    if len(found) > lines:
        found = [*found[: lines - 1], found[lines - 1][: width - 1] + "\N{HORIZONTAL ELLIPSIS}"]
    return found or [""]
