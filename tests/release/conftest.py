"""Bundles with tiny weights, packed; and a web server on this machine that can break, forget and refuse."""

import json
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from custom_components.networks import DenseSSLNetwork, SegmentationNetwork, save_weights
from custom_components.release import pack_bundle, write_listings

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"
SSL, SEGMENTER = "mri_dense_ssl", "hippocampus_mri_segmentation"
TINY = {"base_channels": 4, "num_scales": 3}
NETWORKS = {SSL: lambda: DenseSSLNetwork(**TINY), SEGMENTER: lambda: SegmentationNetwork(num_classes=2, **TINY)}


def make_bundle(name, folder, version="0.1.0"):
    """A copy of a bundle with a tiny network, whose weights its documents name."""
    bundle = folder / name
    shutil.copytree(BUNDLES / name, bundle, ignore=shutil.ignore_patterns("models"))
    for path in (bundle / "configs").glob("*.json"):
        text = path.read_text().replace('"base_channels": 16', '"base_channels": 4')
        path.write_text(text.replace('"num_scales": 4', '"num_scales": 3'))
    save_weights(NETWORKS[name](), bundle / "models" / "model.pt", {"data": "phantoms"})
    sha256 = json.loads((bundle / "models" / "model.json").read_text())["sha256"]
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    metadata.update(version=version, changelog={version: "for tests"})
    metadata["weights"] = {"models/model.pt": {"sha256": sha256}}
    if name == SSL:
        metadata["network_data_format"]["outputs"]["pred"]["num_channels"] = 32 * TINY["num_scales"]
    (bundle / "configs" / "metadata.json").write_text(json.dumps(metadata))
    (bundle / "docs" / "README.md").write_text(f"SHA-256 {sha256}\n")
    return bundle


@pytest.fixture
def bundles(tmp_path):
    """A folder with both kinds of bundle; each test has its own."""
    for name in NETWORKS:
        make_bundle(name, tmp_path / "bundles")
    return tmp_path / "bundles"


@pytest.fixture(scope="session")
def releases(tmp_path_factory):
    """A folder of releases: two versions of one bundle, of which the older sorts last as text, and one of another."""
    folder = tmp_path_factory.mktemp("releases")
    for name, version in ((SSL, "0.9.0"), (SSL, "0.10.0"), (SEGMENTER, "0.1.0")):
        source = tmp_path_factory.mktemp("source")
        make_bundle(SSL, source, version)
        bundle = make_bundle(name, source, version) if name != SSL else source / SSL
        pack_bundle(bundle, folder / f"{name}_v{version}.zip")
    write_listings(folder)
    return folder


class Server(ThreadingHTTPServer):
    """Serves the files of a folder, with ranges, and does on request what servers do when they fail.

    Attributes:
        breaks: how many of the next answers are cut off in the middle.
        ranges: whether it knows ranges.
        requests: path and range of every request so far.
    """

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder, self.breaks, self.ranges, self.requests = folder, 0, True, []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.requests.append((self.path, asked))
        # through a proxy the path is a whole address
        path = self.server.folder / self.path.rsplit("/", 1)[-1]
        if not path.is_file():
            return self.send_error(404)
        content, start = path.read_bytes(), 0
        if asked and self.server.ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        rest = content[start:]
        if self.server.breaks and path.suffix == ".zip":
            self.server.breaks -= 1
            rest = rest[: len(rest) // 2]
        self.wfile.write(rest)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(releases):
    with Server(releases) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No test meets the user's cache, source or proxy, nor the weights of this checkout."""
    for variable in ("DENSE_SSL_SOURCE", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy", "HF_ENDPOINT"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("DENSE_SSL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("custom_components.delivery.cache.ROOT", tmp_path / "checkout")
    monkeypatch.setattr("custom_components.delivery.transfer.time.sleep", lambda seconds: None)
    return tmp_path / "cache"
