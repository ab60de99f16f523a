import hashlib
import json
import logging
import zipfile

import monai.bundle
import pytest
import torch

from custom_components import load_backbone
from custom_components.delivery import ArchiveError, SourceError, Unreachable, download_bundle, find_source
from custom_components.errors import InputError
from scripts.download import download

from .conftest import SEGMENTER, SSL

NEWEST = f"{SSL}_v0.10.0"


def tree(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def publish(folder, name, entries):
    """Put an archive with these entries into a folder, with its right hash."""
    with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
        for entry, content in entries.items():
            archive.writestr(entry, content)
    sha256 = hashlib.sha256((folder / f"{name}.zip").read_bytes()).hexdigest()
    (folder / "SHA256SUMS").write_text(f"{sha256}  {name}.zip\n")


def test_the_newest_version_is_the_one_of_the_largest_number(server, releases, own_cache):
    folder = download_bundle(SSL, source=server.url)
    assert folder == own_cache / NEWEST
    with zipfile.ZipFile(releases / f"{NEWEST}.zip") as archive:
        expected = {name.removeprefix(f"{SSL}/"): archive.read(name) for name in archive.namelist()}
    assert tree(folder) == expected


def test_versions_lie_side_by_side(server, tmp_path):
    for version in ("0.9.0", "0.10.0"):
        folder = download_bundle(SSL, version, server.url, tmp_path / "here")
        assert folder.name == f"{SSL}_v{version}"
    found = sorted((tmp_path / "here").iterdir())
    versions = [json.loads((path / "configs" / "metadata.json").read_text())["version"] for path in found]
    assert versions == ["0.10.0", "0.9.0"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_transfer_that_breaks_is_gone_on_from(server, ranges, own_cache):
    server.breaks, server.ranges = 2, ranges
    folder = download_bundle(SSL, source=server.url)
    asked = [range_ for path, range_ in server.requests if path.endswith(".zip")]
    size = (own_cache / f"{NEWEST}.zip").stat().st_size
    second = size // 2
    assert asked == [None, f"bytes={second}-", f"bytes={second + (size - second) // 2 if ranges else second}-"]
    assert load_backbone(folder).num_scales == 3
    assert not list(own_cache.glob("*.partial"))


def test_the_next_call_goes_on_where_the_last_one_gave_up(server, own_cache):
    server.breaks = 100
    with pytest.raises(Unreachable, match="run it again: it goes on from"):
        download_bundle(SSL, source=server.url)
    kept = next(own_cache.glob("*.partial")).stat().st_size
    server.breaks = 0
    server.requests.clear()
    download_bundle(SSL, source=server.url)
    assert [range_ for path, range_ in server.requests if path.endswith(".zip")] == [f"bytes={kept}-"]


def test_a_transfer_that_was_complete_but_not_checked_is_only_checked(server, releases, own_cache):
    content = (releases / f"{NEWEST}.zip").read_bytes()
    own_cache.mkdir()
    name = f"{NEWEST}.zip.{hashlib.sha256(content).hexdigest()[:12]}.partial"
    (own_cache / name).write_bytes(content)
    assert download_bundle(SSL, source=server.url).is_dir()


@pytest.mark.parametrize("kind", ["server", "folder"])
def test_a_wrong_hash_is_refused_before_anything_is_opened(kind, releases, tmp_path, server, own_cache):
    served = tmp_path / "damaged"
    served.mkdir()
    content = bytearray((releases / f"{NEWEST}.zip").read_bytes())
    content[len(content) // 2] ^= 1
    (served / f"{NEWEST}.zip").write_bytes(content)
    (served / "SHA256SUMS").write_text((releases / "SHA256SUMS").read_text())
    server.folder = served
    with pytest.raises(InputError, match="its SHA-256 is .* but SHA256SUMS says .* nothing of it was opened"):
        download_bundle(SSL, "0.10.0", server.url if kind == "server" else str(served))
    assert [path.name for path in own_cache.iterdir()] in ([".lock"], [])


@pytest.mark.parametrize(
    "entry",
    [
        f"{SSL}/../../escaped.txt",
        "../escaped.txt",
        "/escaped.txt",
        f"{SSL}\\..\\..\\escaped.txt",
        "C:/escaped.txt",
        "another/escaped.txt",
    ],
)
def test_an_archive_that_would_write_elsewhere_is_refused(entry, tmp_path, own_cache):
    served = tmp_path / "served"
    served.mkdir()
    publish(served, NEWEST, {f"{SSL}/configs/metadata.json": "{}", entry: "x"})
    with pytest.raises(ArchiveError, match="lies outside of mri_dense_ssl/"):
        download_bundle(SSL, source=str(served))
    assert not list(tmp_path.rglob("escaped.txt")) and not (own_cache / NEWEST).exists()


def test_an_archive_with_a_link_is_refused(tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    link = zipfile.ZipInfo(f"{SSL}/models")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    publish(served, NEWEST, {f"{SSL}/configs/metadata.json": "{}", link: "/etc"})
    with pytest.raises(ArchiveError, match="is a link"):
        download_bundle(SSL, source=str(served))


def test_what_is_no_archive_is_told(tmp_path):
    served = tmp_path / "served"
    served.mkdir()
    (served / f"{NEWEST}.zip").write_bytes(b"<html>")
    (served / "SHA256SUMS").write_text(f"{hashlib.sha256(b'<html>').hexdigest()}  {NEWEST}.zip\n")
    with pytest.raises(ArchiveError, match="not a readable zip file"):
        download_bundle(SSL, source=str(served))


def test_what_was_fetched_once_needs_no_connection(server, tmp_path, caplog):
    download_bundle(SSL, source=server.url)
    server.requests.clear()
    assert download_bundle(SSL, "0.10.0", server.url).name == NEWEST
    assert download_bundle(SSL, "0.10.0", server.url, tmp_path / "copy").name == NEWEST
    assert server.requests == []
    with caplog.at_level(logging.WARNING):
        assert download_bundle(SSL, source="http://127.0.0.1:9").name == NEWEST
    assert f"using {NEWEST}.zip from the cache" in caplog.text
    assert download_bundle(SSL).name == NEWEST  # no source at all


def test_a_damaged_archive_in_the_cache_is_fetched_again(server, own_cache, tmp_path):
    download_bundle(SSL, source=server.url)
    archive = own_cache / f"{NEWEST}.zip"
    archive.write_bytes(archive.read_bytes()[:1000])
    folder = download_bundle(SSL, "0.10.0", server.url, tmp_path / "again")
    assert load_backbone(folder).base_channels == 4


def test_a_folder_of_the_user_is_never_written_over(server, tmp_path):
    (tmp_path / "here" / NEWEST).mkdir(parents=True)
    (tmp_path / "here" / NEWEST / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=f"{NEWEST}: is there and holds no bundle; remove it"):
        download_bundle(SSL, source=server.url, output_dir=tmp_path / "here")
    assert tree(tmp_path / "here" / NEWEST) == {"notes.txt": b"mine"}
    folder = download_bundle(SSL, source=server.url, output_dir=tmp_path / "there")
    (folder / "notes.txt").write_text("mine")
    download_bundle(SSL, source=server.url, output_dir=tmp_path / "there")
    assert tree(folder)["notes.txt"] == b"mine"


def test_a_mirror_and_a_proxy_are_set_by_environment_variables(server, monkeypatch, own_cache):
    monkeypatch.setenv("DENSE_SSL_SOURCE", "http://releases.invalid/bundles")
    monkeypatch.setenv("HTTP_PROXY", server.url)
    monkeypatch.setenv("http_proxy", server.url)
    assert download_bundle(SSL).is_dir()
    assert {path for path, _ in server.requests} == {
        "http://releases.invalid/bundles/SHA256SUMS",
        f"http://releases.invalid/bundles/{NEWEST}.zip",
    }


def test_the_hub_is_asked_for_the_files_of_a_repository(server, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    assert download_bundle(SSL, source="hub:somebody/bundles").is_dir()
    assert server.requests[0][0] == "/somebody/bundles/resolve/main/SHA256SUMS"


def test_without_a_source_the_sentence_says_how_to_give_one():
    with pytest.raises(SourceError, match="pass --source .* or set the environment variable DENSE_SSL_SOURCE"):
        download_bundle(SSL)
    with pytest.raises(SourceError, match="hub:OWNER/REPOSITORY"):
        find_source("hub")
    with pytest.raises(SourceError, match="neither a folder nor"):
        find_source("no_such_folder")


def test_what_a_source_has_not_is_told(server, tmp_path):
    with pytest.raises(InputError, match=rf"has no bundle ct_dense_ssl; it has .*{NEWEST}"):
        download_bundle("ct_dense_ssl", source=server.url)
    with pytest.raises(InputError, match=f"has no bundle {SSL} 3.0.0"):
        download_bundle(f"{SSL}_v3.0.0", source=server.url)
    with pytest.raises(InputError, match="not the name of a bundle"):
        download_bundle("../etc", source=server.url)
    with pytest.raises(Unreachable, match="SHA256SUMS: cannot be read .HTTP 404"):
        server.folder = tmp_path
        download_bundle(SSL, source=server.url)
    with pytest.raises(Unreachable, match="SHA256SUMS: cannot be read .*; pass the folder that scripts.release wrote"):
        download_bundle(SSL, source=str(tmp_path))
    (tmp_path / "SHA256SUMS").write_text("<html>")
    with pytest.raises(SourceError, match="is not a list of checksums"):
        download_bundle(SSL, source=server.url)


def test_the_command_line_tells_the_folder_or_one_sentence(server, capsys, own_cache):
    download(SSL, version="0.9.0", source=server.url)
    assert str(own_cache / f"{SSL}_v0.9.0") in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        download("ct_dense_ssl", source=server.url)
    assert str(stopped.value).startswith("download: ") and "\n" not in str(stopped.value)


def test_load_backbone_takes_the_name_of_a_bundle(server, monkeypatch, own_cache, tmp_path):
    with pytest.raises(SourceError, match=f"{SSL}: no file and no folder of that name, and no such bundle in"):
        load_backbone(SSL)
    monkeypatch.setenv("DENSE_SSL_SOURCE", server.url)
    backbone = load_backbone(SSL)
    state = torch.load(own_cache / NEWEST / "models" / "model.pt", weights_only=True)
    assert torch.equal(backbone.first_conv.weight, state["backbone.first_conv.weight"].float())
    server.requests.clear()
    monkeypatch.delenv("DENSE_SSL_SOURCE")
    assert torch.equal(load_backbone(SSL, in_channels=2).first_conv.weight[:, :1] * 2, backbone.first_conv.weight)
    assert server.requests == []
    with pytest.raises(InputError, match="no such weight file"):
        load_backbone(f"./{SSL}")


def test_load_backbone_prefers_the_bundle_of_the_checkout(bundles, tmp_path, monkeypatch):
    monkeypatch.setattr("custom_components.delivery.cache.ROOT", tmp_path)
    state = torch.load(bundles / SEGMENTER / "models" / "model.pt", weights_only=True)
    loaded = load_backbone(SEGMENTER).first_conv.weight
    assert torch.equal(loaded, state["backbone.first_conv.weight"].float())


def test_monai_downloads_a_release_by_its_address(server, tmp_path):
    monai.bundle.download(name=SSL, url=f"{server.url}/{NEWEST}.zip", bundle_dir=tmp_path / "monai", progress=False)
    assert (tmp_path / "monai" / SSL / "models" / "model.pt").is_file()
    assert (tmp_path / "monai" / SSL / "custom_components" / "__init__.py").is_file()
