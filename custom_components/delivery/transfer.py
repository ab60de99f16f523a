"""Files that arrive whole: resumed where a transfer broke, believed only after their SHA-256."""

from __future__ import annotations

import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from custom_components.errors import InputError

TIMEOUT = 30  # seconds without a byte
ATTEMPTS = 5
CHUNK = 1 << 18


class Unreachable(InputError):
    """A source that cannot be read now."""


def file_digest(path: str | Path, algorithm: str = "sha256") -> str:
    """Hash of a file, hexadecimal, read in pieces."""
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def reason_of(error: BaseException) -> str:
    """What went wrong, without the address, which the sentence around it names."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return reason_of(error.reason) if isinstance(error.reason, Exception) else str(error.reason)
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def open_url(request: str | urllib.request.Request) -> http.client.HTTPResponse:
    """`urlopen` with the proxies of now; urllib's own keeps those of its first call."""
    return urllib.request.build_opener().open(request, timeout=TIMEOUT)


def fetch_file(address: str, target: Path, sha256: str, progress: bool = True) -> Path:
    """Copy or download a file, and check it, before it appears under its name.

    What a broken transfer left is kept beside it, named by the hash, and gone on from: within the call, up to
    `ATTEMPTS` times, and by the next call. Proxies are urllib's: HTTP_PROXY, HTTPS_PROXY, NO_PROXY.

    Args:
        address: URL, or path of a file.
        sha256: what the file must have; a file that has it already is not fetched again.
        progress: show a bar, on a terminal.

    Raises:
        Unreachable: it cannot be fetched now.
        InputError: what came has another hash; nothing of it is kept.
    """
    if target.is_file() and file_digest(target) == sha256:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{sha256[:12]}.partial")
    if address.startswith(("http://", "https://")):
        _download(address, partial, progress)
    else:
        try:
            shutil.copyfile(address, partial)
        except OSError as error:
            raise Unreachable(f"{address}: cannot be read ({reason_of(error)}); check --source") from error
    found = file_digest(partial)
    if found != sha256:
        partial.unlink()
        raise InputError(
            f"{address}: its SHA-256 is {found[:12]}... but SHA256SUMS says {sha256[:12]}...; it was damaged on "
            "the way or replaced, and nothing of it was opened: fetch it again, or ask who runs the source"
        )
    partial.replace(target)
    return target


def _download(url: str, partial: Path, progress: bool) -> None:
    """Append to `partial` until it is complete."""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(0.5 * attempt)
        try:
            missing = _download_once(url, partial, progress)
            reason = f"the connection was closed {missing} bytes before the end" if missing else ""
        except urllib.error.HTTPError as error:
            if error.code < 500:  # asking again gives the same answer
                raise Unreachable(f"{url}: cannot be fetched ({reason_of(error)}); check --source") from error
            reason = reason_of(error)
        except (OSError, http.client.HTTPException) as error:
            reason = reason_of(error)
        if not reason:
            return
    raise Unreachable(
        f"{url}: cannot be fetched ({reason}); run it again: it goes on from {_size(partial)} bytes, which are kept"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _download_once(url: str, partial: Path, progress: bool) -> int:
    """One request for what is missing of `partial`; returns how many bytes did not come."""
    start = _size(partial)
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = open_url(request)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is missing; the hash decides whether it is right
            return 0
        raise
    with response:
        if response.status != 206:  # a server without ranges sends everything
            start = 0
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        name = url.rsplit("/", 1)[-1]
        with (
            open(partial, "ab" if start else "wb") as file,
            tqdm(
                total=total, initial=start, unit="B", unit_scale=True, desc=name, disable=None if progress else True
            ) as bar,
        ):
            while piece := response.read(CHUNK):
                file.write(piece)
                bar.update(len(piece))
    return max(total - _size(partial), 0) if total else 0
