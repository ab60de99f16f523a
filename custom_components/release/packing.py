"""Packs a bundle with its code into a zip file that is the same, byte for byte, whenever and wherever it is made."""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import custom_components
from custom_components.delivery import file_digest, unzip_bundle
from custom_components.delivery.names import NAME
from custom_components.errors import InputError
from custom_components.networks.weight_files import read_weights

from .checks import bundle_files, check_bundle, check_network, place_faults, try_inference
from .links import inside_bundle

SIBLING = re.compile(r"/\.\./(\w+)/models/model\.pt")
FIRST_STEP = '        {"_target_": "custom_components.errors.report_plainly"},\n'
# the bundle's folder goes first on the import path: `monai.bundle run` puts it there too, but after `initialize`
OWN_CODE = (
    '        "$import sys",\n        "$sys.path.insert(0, str(@bundle_root))",\n'
    + FIRST_STEP
    + '        {"_target_": "custom_components.delivery.require_copy", "bundle_root": "@bundle_root"},\n'
)


def released_bundles(bundles: Path) -> list[str]:
    """The names of the bundles that have weights."""
    return sorted(path.parents[1].name for path in bundles.glob("*/models/model.pt"))


def release_bundles(
    bundles: Path, output_dir: Path, names: Sequence[str] = (), url: str = "", say: Callable[[str], None] = print
) -> list[Path]:
    """Check bundles, pack each as `NAME_vVERSION.zip`, try what was packed, and list all releases of the folder.

    Args:
        bundles: folder of the bundles.
        output_dir: where the archives, SHA256SUMS and model_info.json go; earlier releases there are listed too.
        names: bundles; none means every one with weights.
        url: address that the folder will have, for model_info.json.

    Raises:
        InputError: a bundle has a fault, or another archive has that version already. Nothing of it is then written.
    """
    names = list(names) or released_bundles(bundles)
    if not names:
        raise InputError(f"{bundles}: no bundle has models/model.pt, so there is nothing to release; train one first")
    checked = {name: check_bundle(bundles / name) for name in names}
    output_dir.mkdir(parents=True, exist_ok=True)
    archives = []
    for name, metadata in checked.items():
        check_network(bundles / name)
        with tempfile.TemporaryDirectory(dir=output_dir, prefix=".release_") as temporary:
            scratch = Path(temporary)
            packed = pack_bundle(bundles / name, scratch / "packed.zip")
            unzipped = unzip_bundle(packed, name, scratch / "unzipped" / name)
            try_inference(unzipped, metadata, scratch)
            archive = output_dir / f"{name}_v{metadata['version']}.zip"
            if archive.exists() and file_digest(archive) != file_digest(packed):
                raise InputError(
                    f"{archive}: exists with other content; a version is released once: raise version in "
                    f"{name}/configs/metadata.json, or remove the file if nobody has it"
                )
            packed.replace(archive)
        say(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB, SHA-256 {file_digest(archive)}")
        archives.append(archive)
    write_listings(output_dir, url)
    return archives


def pack_bundle(folder: Path, archive: Path) -> Path:
    """Write a bundle and `custom_components` as `archive`, all under the bundle's name.

    Stored uncompressed, because weights hardly compress and zlib's output differs between its versions; sorted, with
    one date and one mode. Configs are changed in two places: the code comes from the bundle's own folder, and weights
    of another bundle that a training starts from are taken along as `models/pretrained.pt`. Links of the README that
    lead out of the bundle become plain text.

    Raises:
        InputError: the configs start from several bundles, or from one that has no weights, whose weights are damaged,
            or whose record names places of one machine.
    """
    contents = {file: (folder / file).read_bytes() for file in bundle_files(folder)}
    siblings: set[str] = set()
    for file in contents:
        if file.startswith("configs/") and file.endswith(".json"):
            text = contents[file].decode()
            siblings |= set(SIBLING.findall(text))
            text = SIBLING.sub("/models/pretrained.pt", text)
            contents[file] = _with_own_code(text, folder / file).encode()
    contents["docs/README.md"] = inside_bundle(contents["docs/README.md"].decode()).encode()
    if len(siblings) > 1:
        raise InputError(f"{folder}: its configs start from several bundles ({', '.join(sorted(siblings))}); keep one")
    for sibling in siblings:
        for suffix in ("pt", "json"):
            source = folder.parent / sibling / "models" / f"model.{suffix}"
            if not source.is_file():
                raise InputError(f"{source}: is missing, and {folder.name} starts from it; train {sibling} first")
            contents[f"models/pretrained.{suffix}"] = source.read_bytes()
        _check_sibling(folder.parent / sibling / "models" / "model.pt")
    package = Path(custom_components.__file__).parent
    for path in package.rglob("*.py"):
        contents[f"{package.name}/{path.relative_to(package).as_posix()}"] = path.read_bytes()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as target:
        for file in sorted(contents):
            entry = zipfile.ZipInfo(f"{folder.name}/{file}", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            target.writestr(entry, contents[file])
    return archive


def _check_sibling(weights: Path) -> None:
    """What is packed of another bundle is checked as its own release would."""
    read_weights(weights)
    record = weights.with_suffix(".json")
    faults = list(place_faults(str(record), json.loads(record.read_text())))
    if faults:
        raise InputError("\n".join(faults))


def _with_own_code(text: str, path: Path) -> str:
    """The text of a config whose `initialize`, where it has one, imports from the bundle's folder first."""
    if "initialize" not in json.loads(text):
        return text
    changed = text.replace(FIRST_STEP, OWN_CODE, 1)
    if json.loads(changed)["initialize"][2:3] != json.loads(text)["initialize"][:1]:
        raise InputError(f"{path}: its initialize must begin with report_plainly, on a line of its own")
    return changed


def write_listings(output_dir: Path, url: str = "") -> None:
    """Write SHA256SUMS, as sha256sum does, and model_info.json, as the MONAI model zoo does (its checksum is SHA-1)."""
    named = {archive: NAME.fullmatch(archive.stem) for archive in output_dir.glob("*_v*.zip")}
    archives = sorted(archive for archive, match in named.items() if match and match["version"])
    sums = "".join(f"{file_digest(archive)}  {archive.name}\n" for archive in archives)
    prefix = url.rstrip("/") + "/" if url else ""
    info = {a.stem: {"checksum": file_digest(a, "sha1"), "source": prefix + a.name} for a in archives}
    (output_dir / "SHA256SUMS").write_text(sums)
    (output_dir / "model_info.json").write_text(json.dumps(info, indent=4) + "\n")
