"""Pages that open from disk: one style for all, and a policy that lets them load nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path


def fill_page(
    template: str, *, style: str, script: str, images: str, scripts: str = "", texts: Mapping[str, str] | None = None
) -> bytes:
    """Put style and script, and a policy that allows these alone by their checksums, into a page.

    Args:
        template: HTML with {{style}}, {{script}}, {{policy}} and the keys of ``texts`` in it. texts: HTML already, put in as it is.
        style: of this page, after the style of all. images, scripts: where else they may come from, as a policy says it.
    """
    whole = (Path(__file__).with_name("base.css")).read_text(encoding="utf-8") + style
    policy = (
        f"default-src 'none'; img-src {images}; script-src {scripts}{source_hash(script)}; style-src {source_hash(whole)}; "
        "base-uri 'none'; form-action 'none'"
    )
    filled = {"policy": policy, "style": whole, "script": script, **(texts or {})}
    return re.sub(r"\{\{(\w+)\}\}", lambda match: filled[match[1]], template).encode()


def announce(page: Path) -> None:
    """Print which page to open; what the terminal's encoding lacks, or no encoding has, becomes question marks."""
    encoding = sys.stdout.encoding or "utf-8"
    print(f"open {page.resolve()}".encode(encoding, "replace").decode(encoding))


def source_hash(text: str) -> str:
    """How a content security policy names an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
