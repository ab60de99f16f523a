"""A real MONAI Label server on 127.0.0.1, in an environment of its own."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import pytest

from custom_components.data import few_label_subset, read_datalist, split_datalist, write_phantoms

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-monailabel" / "bin" / "python"
SHIM = Path(__file__).parent / "cpu_torchvision"
REAL_DATA = Path(os.environ.get("DENSE_SSL_DATA") or ROOT.parent / "shared" / "data")


class Server:
    """A running server, and the part of its interface that clients use."""

    def __init__(self, studies, app, *options):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url, self.app, self.log = f"http://127.0.0.1:{port}", app, app.with_name(f"{app.name}.log")
        command = [str(PYTHON), "-m", "scripts.monailabel", "--studies", str(studies), "--app", str(app)]
        command += ["--port", str(port), *options]
        environment = {**os.environ, "PYTHONPATH": str(SHIM), "OMP_NUM_THREADS": "1"}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        self._wait_for(lambda: self.get("/info/"), 180)

    def stop(self):
        self.process.terminate()
        self.process.wait(30)

    def get(self, path):
        return json.loads(self.send("GET", path)[1])

    def send(self, method, path, body=None, content_type="application/json"):
        """Status and body of the answer."""
        headers = {"Content-Type": content_type}
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def infer(self, model, image, path):
        """Status; the label file is written to `path`."""
        body, content_type = form({"params": "{}"})
        status, content = self.send("POST", f"/infer/{model}?image={image}&output=image", body, content_type)
        path.write_bytes(content)
        return status

    def save_label(self, image, file):
        body, content_type = form({"params": '{"label_info": []}'}, file)
        return self.send("PUT", f"/datastore/label?image={image}&tag=final", body, content_type)[0]

    def train(self, model, **options):
        """The finished task, once it is done or has failed."""
        status, _ = self.send("POST", f"/train/{model}", json.dumps(options).encode())
        assert status == 200
        self._wait_for(lambda: self.get("/train/")["status"] in ("DONE", "ERROR"), 300)
        return self.get("/train/")

    def _wait_for(self, condition, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if condition():
                    return
            except OSError:
                pass
            time.sleep(0.5)
        raise TimeoutError(self.log.read_text()[-3000:])


def form(fields, file=None):
    """A multipart body and its content type."""
    boundary = uuid.uuid4().hex
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    body = "".join(parts).encode()
    if file is not None:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="label"; filename="{file.name}"\r\n'
        body += head.encode() + b"Content-Type: application/gzip\r\n\r\n" + file.read_bytes() + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


@pytest.fixture(scope="session")
def environment():
    """The server's environment, made where it is not there yet."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("MONAI Label is tested with Python 3.11 alone")
    clean = {key: value for key, value in os.environ.items() if key not in ("VENV", "PYTHONPATH")}
    clean["PYTHON"] = sys.executable
    done = subprocess.run(
        ["bash", "scripts/setup_monailabel.sh"], cwd=ROOT, env=clean, capture_output=True, text=True, timeout=850
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """Two scans to label and one to segment, real where they are at hand: name -> image and label file."""
    folder = REAL_DATA / "Task04_Hippocampus"
    if not folder.is_dir():
        folder = tmp_path_factory.mktemp("phantoms")
        write_phantoms(folder, "MRI", 10, size="tiny")
    items = read_datalist(folder)
    chosen = few_label_subset(split_datalist(items, "train"), 2, seed=0) + split_datalist(items, "test")[:1]
    return {item["case"]: (Path(item["image"]), Path(item["label"])) for item in chosen}


@pytest.fixture(scope="session")
def ct_scans():
    """A real planning CT to label and one to segment, every organ drawn in both: name -> image and label file."""
    folder = REAL_DATA / "OpenKBP"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    items = [item for item in split_datalist(read_datalist(folder), "test") if len(item["annotated_labels"]) == 7]
    return {item["case"]: (Path(item["image"]), Path(item["label"])) for item in items[:2]}


@pytest.fixture(scope="module")
def serve(environment, scans, tmp_path_factory):
    """Start a server with the scans as its studies; options of `scripts.monailabel`."""
    servers = []

    def start(*options, app=None, served=scans):
        studies = tmp_path_factory.mktemp("studies")
        for image, _ in served.values():
            shutil.copyfile(image, studies / image.name)
        servers.append(Server(studies, app or tmp_path_factory.mktemp("server") / "app", *options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
