"""Where released bundles come from: a folder, a web server, or a repository of the Hugging Face Hub.

A source holds `NAME_vVERSION.zip` and `SHA256SUMS`, as `python -m scripts.release` writes them.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from custom_components.errors import InputError

from .transfer import Unreachable, fetch_file, open_url, reason_of

# there is no public release yet; its URL goes here
DEFAULT_SOURCE: str | None = None
SUMS = "SHA256SUMS"


class SourceError(InputError):
    """No source is set, or it does not have what was asked for."""


@dataclass(frozen=True)
class Source:
    """A folder or URL with releases."""

    location: str

    @property
    def is_remote(self) -> bool:
        return self.location.startswith(("http://", "https://"))

    def address(self, file: str) -> str:
        return f"{self.location.rstrip('/')}/{file}" if self.is_remote else str(Path(self.location) / file)

    def checksums(self) -> dict[str, str]:
        """SHA-256 of every release, by the name of its file.

        Raises:
            Unreachable: the source cannot be read.
            SourceError: what it has as SHA256SUMS is something else.
        """
        address = self.address(SUMS)
        try:
            if self.is_remote:
                with open_url(address) as response:
                    text = response.read().decode()
            else:
                text = Path(address).read_text()
        except UnicodeDecodeError as error:
            raise SourceError(f"{address}: is not a list of checksums; check the source") from error
        except OSError as error:  # URLError is one too
            if self.is_remote:
                advice = (
                    "check the connection and the proxy (HTTPS_PROXY), or pass another --source or set DENSE_SSL_SOURCE"
                )
            else:
                advice = "pass the folder that scripts.release wrote, with its releases and this list of them"
            raise Unreachable(f"{address}: cannot be read ({reason_of(error)}); {advice}") from error
        entries = [re.fullmatch(r"([0-9a-f]{64}) [ *]([\w.-]+)", line) for line in text.splitlines() if line.strip()]
        if not entries or not all(entries):
            raise SourceError(f"{address}: is not a list of checksums as sha256sum writes it; check the source")
        return {entry[2]: entry[1] for entry in entries if entry}

    def fetch(self, file: str, target: Path, sha256: str, progress: bool = True) -> Path:
        """`fetch_file` of one of its files."""
        return fetch_file(self.address(file), target, sha256, progress)


def find_source(source: str | None = None) -> Source:
    """The source to use: `source`, else the environment variable DENSE_SSL_SOURCE, else `DEFAULT_SOURCE`.

    Args:
        source: a folder, an `http(s)://` URL, or `hub:OWNER/REPOSITORY` (at HF_ENDPOINT if that is set), which may be
            followed by `@` and a tag or branch; else it is `main`.

    Raises:
        SourceError: none is set, or it is none of the three.
    """
    source = source or os.environ.get("DENSE_SSL_SOURCE") or DEFAULT_SOURCE
    if not source:
        raise SourceError(
            "no source of released bundles is set: pass --source a URL, hub:OWNER/REPOSITORY or a folder, or set the "
            "environment variable DENSE_SSL_SOURCE"
        )
    if source == "hub" or source.startswith("hub:"):
        repository = source.removeprefix("hub").removeprefix(":")
        found = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?", repository)
        if found is None:
            raise SourceError(
                f"{source}: names no repository; expected hub:OWNER/REPOSITORY, a repository that holds the releases"
            )
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
        return Source(f"{endpoint}/{found[1]}/resolve/{found[2] or 'main'}")
    if source.startswith(("http://", "https://")):
        return Source(source)
    if not Path(source).expanduser().is_dir():
        raise SourceError(f"{source}: is neither a folder nor an http:// or https:// URL nor hub:OWNER/REPOSITORY")
    return Source(str(Path(source).expanduser()))
