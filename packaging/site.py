"""MkDocs' hook: links from the documentation to the rest of the repository lead to where it is hosted."""

from __future__ import annotations

import posixpath
import re
from typing import Any

PAGES = "https://github.com/CaLID-MR/SlicerCaLID/blob/main/"


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """The page with links that leave `docs/` made absolute."""
    folder = posixpath.dirname(posixpath.join("docs", page.file.src_uri))

    def lead_out(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, found[1]))
        return found[0] if target.startswith("docs/") else f"]({PAGES}{target}{found[2] or ''})"

    return re.sub(r"\]\((?!https?:|#|mailto:)([^)#]+)(#[^)]*)?\)", lead_out, markdown)
