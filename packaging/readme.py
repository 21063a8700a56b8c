"""The package's description: the README with links that work wherever it is shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PAGES = "https://github.com/CaLID-MR/SlicerCaLID/blob/main/"
FILES = "https://raw.githubusercontent.com/CaLID-MR/SlicerCaLID/main/"


def absolute(text: str) -> str:
    """Markdown with its relative links and pictures made absolute."""
    return re.sub(
        r"(!?)\[([^\]]*)\]\((?!https?:|#|mailto:)([^)]+)\)",
        lambda found: f"{found[1]}[{found[2]}]({FILES if found[1] else PAGES}{found[3]})",
        text,
    )


class AbsoluteReadme(MetadataHookInterface):
    """Gives the build the README with absolute links."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": absolute(text)}
