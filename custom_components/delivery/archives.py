"""Archives of bundles, unzipped only where every entry stays inside the bundle's folder."""

from __future__ import annotations

import shutil
import stat
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from custom_components.errors import InputError


class ArchiveError(InputError):
    """An archive that is no bundle's, or that would write outside of its folder."""


def unzip_bundle(archive: Path, name: str, target: Path) -> Path:
    """Unzip `NAME/...` as the folder `target`, which appears complete or not at all; a bundle that is there stays.

    Raises:
        ArchiveError: `target` is there and no bundle; or the archive cannot be read, or has an entry outside of
            `NAME/`, a link, or no configs/metadata.json.
    """
    if target.is_dir():
        if not (target / "configs" / "metadata.json").is_file():
            raise ArchiveError(f"{target}: is there and holds no bundle; remove it, or choose another folder")
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unzip_"))
    try:
        with zipfile.ZipFile(archive) as content:
            _check_entries(content, name, archive)
            content.extractall(temporary)
        (temporary / name).replace(target)
    except (zipfile.BadZipFile, EOFError) as error:
        raise ArchiveError(f"{archive}: is not a readable zip file; fetch it again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def _check_entries(content: zipfile.ZipFile, name: str, archive: Path) -> None:
    for entry in content.infolist():
        # zipfile's own names have no backslash on Windows; here one may stand for a folder there
        path = PurePosixPath(entry.orig_filename.replace("\\", "/"))
        inside = path.parts[:1] == (name,) and ".." not in path.parts and ":" not in entry.orig_filename
        if not inside or stat.S_ISLNK(entry.external_attr >> 16):
            raise ArchiveError(
                f"{archive}: its entry {entry.orig_filename!r} is a link or lies outside of {name}/; it is not a "
                "release of that bundle, and nothing was unzipped"
            )
    if f"{name}/configs/metadata.json" not in content.namelist():
        raise ArchiveError(f"{archive}: has no {name}/configs/metadata.json; it is not a bundle")
