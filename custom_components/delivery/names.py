"""Names of bundles and of their releases: `ct_dense_ssl`, `ct_dense_ssl_v0.1.0`."""

from __future__ import annotations

import re

from custom_components.errors import InputError

NAME = re.compile(r"(?P<name>[a-z][a-z0-9_]*?)(_v(?P<version>\d+\.\d+\.\d+))?")


def is_bundle_name(text: str) -> bool:
    """Whether it can be the name of a bundle or of a release, rather than a path."""
    return NAME.fullmatch(text) is not None


def split_name(text: str, version: str | None = None) -> tuple[str, str | None]:
    """Name and version of `NAME` or `NAME_vVERSION`.

    Raises:
        InputError: it is neither, or names another version than `version`.
    """
    found = NAME.fullmatch(text)
    if found is None:
        raise InputError(
            f"{text}: is not the name of a bundle; expected one such as ct_dense_ssl or ct_dense_ssl_v0.1.0"
        )
    if version is not None and re.fullmatch(r"\d+\.\d+\.\d+", version) is None:
        raise InputError(f"{text}: version must be three numbers such as 0.1.0, but is {version!r}")
    if version is not None and found["version"] not in (None, version):
        raise InputError(f"{text}: names another version than {version}; give one of the two")
    return found["name"], version or found["version"]


def version_key(version: str) -> tuple[int, ...]:
    """For sorting: 0.10.0 is newer than 0.9.0."""
    return tuple(int(number) for number in version.split("."))


def choose_release(names: list[str], name: str, version: str | None) -> str | None:
    """The release of a bundle among names such as `ct_dense_ssl_v0.1.0`: that version, or the newest; None: none."""
    versions = []
    for candidate in names:
        found = NAME.fullmatch(candidate)
        if found and found["name"] == name and found["version"] and version in (None, found["version"]):
            versions.append(found["version"])
    return f"{name}_v{max(versions, key=version_key)}" if versions else None
