"""Fetch a released bundle, checked before it is opened.

python -m scripts.download ct_dense_ssl --source https://SERVER/FOLDER
"""

from __future__ import annotations

import sys

import fire

from custom_components.delivery import download_bundle
from custom_components.errors import InputError


def download(name: str, version: str | None = None, source: str | None = None, output_dir: str | None = None) -> None:
    """Unzip a release as `NAME_vVERSION`; what was fetched once needs no connection again.

    Args:
        name: the bundle, such as ct_dense_ssl, or a release of it, such as ct_dense_ssl_v0.1.0.
        version: the release; else the newest.
        source: a URL, hub:OWNER/REPOSITORY, or a folder with releases; else the environment variable DENSE_SSL_SOURCE.
        output_dir: folder to unzip into; else the cache, $DENSE_SSL_CACHE or ~/.cache/dense_ssl.
    """
    wanted = None if version is None else str(version)
    try:
        folder = download_bundle(str(name), wanted, source, None if output_dir is None else str(output_dir))
    except (InputError, OSError) as error:
        sys.exit(f"download: {error}")
    print(f"{name} is in {folder}")


if __name__ == "__main__":
    fire.Fire(download)
