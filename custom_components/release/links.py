"""Links of a bundle's docs/README.md where the bundle has left the repository."""

from __future__ import annotations

import re

# Markdown links and pictures that lead to a file
LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^]]*)\]\((?!https?://|#)(?P<target>[^)]+)\)")


def inside_bundle(text: str) -> str:
    """Text of docs/README.md in which links out of the bundle's folder are plain text."""
    return LINK.sub(lambda link: link["text"] if link["target"].startswith("../../") else link[0], text)


def seen_from_root(text: str) -> str:
    """Text of docs/README.md with its links as they are one folder up; those out of the bundle become plain text."""

    def change(link: re.Match[str]) -> str:
        if not link["target"].startswith("../"):
            return f"{link['picture']}[{link['text']}](docs/{link['target']})"
        return f"{link['picture']}[{link['text']}]({link['target'].removeprefix('../')})"

    return LINK.sub(change, inside_bundle(text))
