"""A Hugging Face Hub on this machine: the part of its protocol that huggingface_hub 2.4 uses for models, over LFS.

Two servers, as the real one has: the Hub itself, which knows tokens and repositories, and at another address the
storage of large files, which must not be shown a token. A commit is a folder, in which a large file is an LFS pointer.
"""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

# the .gitattributes of a new model repository lists these, among others
LARGE = (".pt", ".zip", ".safetensors")
LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0"}
POINTER = re.compile(rb"version https://git-lfs.github.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n")


def git_oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Refused(Exception):
    """An answer that is not 200: status, message, and the Hub's X-Error-Code."""

    def __init__(self, status, message, code=""):
        self.status, self.message, self.code = status, message, code


class Repository:
    """Commits in order, each a folder; `main` is the last one."""

    def __init__(self, folder, private):
        self.folder, self.private, self.commits, self.tags = folder, private, [], {}
        self.commit({".gitattributes": "".join(f"*{s} filter=lfs diff=lfs merge=lfs -text\n" for s in LARGE).encode()})

    @property
    def head(self):
        return self.commits[-1]

    def resolve(self, revision):
        found = self.head if revision == "main" else self.tags.get(revision, revision)
        if found not in self.commits:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found

    def files(self, commit):
        """Contents of a commit's files by path; of a large one, its pointer."""
        root = self.folder / commit
        return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}

    def commit(self, files):
        listed = "".join(f"{path}\0{git_oid(content)}\n" for path, content in sorted(files.items()))
        commit = hashlib.sha1(f"{len(self.commits)}\n{listed}".encode()).hexdigest()
        for path, content in files.items():
            target = self.folder / commit / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        self.commits.append(commit)
        return commit


class Hub:
    """Both servers.

    Attributes:
        tokens: the owners under which a token may write.
        requests: method and path of every request to the Hub so far.
        broken: a status that it answers to everything whose path matches `broken_path`, or "page" for an HTML page.
        refusals: what the storage did not take, and why.
    """

    def __init__(self, folder):
        self.folder, self.repositories = Path(folder), {}
        self.tokens = {"hf_writer": {"somebody"}, "hf_reader": set()}
        self.requests, self.broken, self.broken_path, self.refusals = [], None, "", []
        self.expected = {}  # size by SHA-256 of the large files that were announced
        (self.folder / "lfs").mkdir(parents=True)
        self.hub, self.storage = (ThreadingHTTPServer(("127.0.0.1", 0), kind) for kind in (HubHandler, StorageHandler))
        self.hub.state = self.storage.state = self

    @property
    def url(self):
        return f"http://127.0.0.1:{self.hub.server_address[1]}"

    @property
    def storage_url(self):
        return f"http://127.0.0.1:{self.storage.server_address[1]}"

    def written(self):
        """The requests that change something."""
        return [request for request in self.requests if request[0] not in ("GET", "HEAD")]

    def large(self, sha256):
        return self.folder / "lfs" / sha256


@contextmanager
def running_hub(folder):
    hub = Hub(folder)
    threads = [
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True) for server in (hub.hub, hub.storage)
    ]
    for thread in threads:
        thread.start()
    yield hub
    for server, thread in zip((hub.hub, hub.storage), threads):
        server.shutdown()
        thread.join()
        server.server_close()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    @property
    def hub(self):
        return self.server.state

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while size := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(pieces)

    def answer(self, content=b"", status=200, **headers):
        self.send_response(status)
        headers.setdefault("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class StorageHandler(Handler):
    """Takes a large file only if its size and SHA-256 are those that were announced to the Hub."""

    def do_PUT(self):
        content, sha256 = self.body(), self.path.rsplit("/", 1)[-1]
        faults = {
            "a token was shown": "Authorization" in self.headers,
            "not announced": sha256 not in self.hub.expected,
            "another size": len(content) != self.hub.expected.get(sha256),
            "another hash": hashlib.sha256(content).hexdigest() != sha256,
        }
        found = [fault for fault, is_so in faults.items() if is_so]
        self.hub.refusals += found
        if found:
            return self.answer(", ".join(found).encode(), 400)
        self.hub.large(sha256).write_bytes(content)
        self.answer()

    def do_GET(self):
        if "Authorization" in self.headers:
            self.hub.refusals.append("a token was shown")
            return self.answer(b"a token was shown", 400)
        content = self.hub.large(self.path.rsplit("/", 1)[-1]).read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked is None:
            return self.answer(content)
        start = int(asked[1])
        self.answer(content[start:], 206, Content_Range=f"bytes {start}-{len(content) - 1}/{len(content)}")


class HubHandler(Handler):
    def handle_request(self):
        address = urlsplit(self.path)
        path, self.query = unquote(address.path), parse_qs(address.query)
        hub, body = self.hub, self.body()
        hub.requests.append((self.command, path))
        try:
            if hub.broken == "page":
                return self.answer(b"<html>It works!</html>", Content_Type="text/html")
            if hub.broken and re.search(hub.broken_path, path):
                raise Refused(hub.broken, "Something went wrong")
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if token and token not in hub.tokens:
                raise Refused(401, "Invalid credentials in Authorization header")
            self.token = token
            for method, pattern, function in ROUTES:
                found = re.fullmatch(pattern, path)
                if found and method == self.command:
                    return function(self, body, **found.groupdict())
            raise Refused(404, f"this Hub does not know {self.command} {path}")
        except Refused as refused:
            headers = {"X_Error_Code": refused.code} if refused.code else {}
            content = json.dumps({"error": refused.message}).encode()
            self.answer(content, refused.status, X_Error_Message=refused.message, **headers)

    do_GET = do_HEAD = do_POST = do_DELETE = handle_request

    def json(self, content, **headers):
        self.answer(json.dumps(content).encode(), Content_Type="application/json", **headers)

    def may_write(self, owner):
        if not self.token:
            raise Refused(401, "Invalid username or password.")
        if owner not in self.hub.tokens[self.token]:
            raise Refused(403, f'You don\'t have the rights to create or change a model under the namespace "{owner}"')

    def repository(self, repo, write=False):
        found = self.hub.repositories.get(repo)
        hidden = found is not None and found.private and repo.split("/")[0] not in self.hub.tokens.get(self.token, ())
        if found is None or hidden:
            # who shows no token is not told which names exist
            raise Refused(404 if self.token else 401, "Repository not found", "RepoNotFound")
        if write:
            self.may_write(repo.split("/")[0])
        return found

    # what follows answers one kind of request each

    def create(self, body):
        asked = json.loads(body)
        self.may_write(asked["organization"])
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.repositories:
            raise Refused(409, "You already created this model repo")
        self.hub.repositories[repo] = Repository(self.hub.folder / repo, asked.get("visibility") == "private")
        self.json({"url": f"{self.hub.url}/{repo}"})

    def validate_card(self, body):
        asked = json.loads(body)
        header = yaml.safe_load(asked["content"].split("---\n")[1])
        errors = [] if header.get("license") in LICENCES else [{"message": '"license" must be one of the known ones'}]
        content = json.dumps({"errors": errors, "warnings": []}).encode()
        self.answer(content, 400 if errors else 200, Content_Type="application/json")

    def references(self, body, repo):
        found = self.repository(repo)
        tags = [
            {"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid} for tag, oid in sorted(found.tags.items())
        ]
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": found.head}
        self.json({"branches": [main], "converts": [], "tags": tags})

    def info(self, body, repo, revision="main"):
        found = self.repository(repo)
        commit = found.resolve(revision)
        siblings = []
        for path, content in found.files(commit).items():
            sibling = {"rfilename": path}
            if "blobs" in self.query:
                sibling.update(blobId=git_oid(content), size=len(content))
                if pointer := POINTER.fullmatch(content):
                    size = int(pointer[2])
                    large = {"sha256": pointer[1].decode(), "size": size, "pointerSize": len(content)}
                    sibling.update(size=size, lfs=large)
            siblings.append(sibling)
        self.json({"id": repo, "sha": commit, "private": found.private, "siblings": siblings})

    def tree(self, body, repo, revision):
        found = self.repository(repo)
        entries = []
        for path, content in found.files(found.resolve(revision)).items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
            if pointer := POINTER.fullmatch(content):
                size = int(pointer[2])
                entry.update(size=size, lfs={"oid": pointer[1].decode(), "size": size, "pointerSize": len(content)})
            entries.append(entry)
        self.json(entries)

    def preupload(self, body, repo, revision):
        found = self.repository(repo, write=True)
        files = found.files(found.resolve(revision))
        modes = []
        for asked in json.loads(body)["files"]:
            sample, old = base64.b64decode(asked["sample"]), files.get(asked["path"])
            is_large = asked["path"].endswith(LARGE) or b"\0" in sample or asked["size"] > 10_000_000
            pointer = POINTER.fullmatch(old) if old is not None else None
            oid = pointer[1].decode() if pointer else old and git_oid(old)
            mode = "lfs" if is_large else "regular"
            modes.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self.json({"files": modes})

    def batch(self, body, repo):
        self.repository(repo, write=True)
        asked, objects = json.loads(body), []
        assert asked["operation"] == "upload" and asked["hash_algo"] == "sha256" and "basic" in asked["transfers"]
        for item in asked["objects"]:
            answer = {"oid": item["oid"], "size": item["size"]}
            if not self.hub.large(item["oid"]).is_file():
                self.hub.expected[item["oid"]] = item["size"]
                verify = {"href": f"{self.hub.url}/{repo}.git/info/lfs/objects/verify", "header": {}}
                upload = {"href": f"{self.hub.storage_url}/upload/{item['oid']}", "header": {}}
                answer["actions"] = {"upload": upload, "verify": verify}
            objects.append(answer)
        self.json({"transfer": "basic", "objects": objects})

    def verify(self, body, repo):
        self.repository(repo, write=True)
        asked = json.loads(body)
        self.require_large(asked["oid"], asked["size"])
        self.json({})

    def require_large(self, sha256, size):
        path = self.hub.large(sha256)
        if not path.is_file() or path.stat().st_size != size:
            raise Refused(400, f"large file {sha256} was not uploaded")

    def commit(self, body, repo, revision):
        found = self.repository(repo, write=True)
        assert revision == "main"
        first, *operations = [json.loads(line) for line in body.splitlines()]
        assert first["key"] == "header" and first["value"]["summary"]
        if first["value"].get("parentCommit", found.head) != found.head:
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        files = found.files(found.head)
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            if kind == "file":
                assert value["encoding"] == "base64"
                files[value["path"]] = base64.b64decode(value["content"], validate=True)
            elif kind == "lfsFile":
                assert value["algo"] == "sha256"
                self.require_large(value["oid"], value["size"])
                pointer = (
                    f"version https://git-lfs.github.com/spec/v1\noid sha256:{value['oid']}\nsize {value['size']}\n"
                )
                files[value["path"]] = pointer.encode()
            elif kind == "deletedFile":
                if files.pop(value["path"], None) is None:
                    raise Refused(404, "A file with this name doesn't exist", "EntryNotFound")
            else:
                raise Refused(400, f"this Hub does not know the operation {kind}")
        commit = found.commit(files)
        self.json({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}"})

    def tag(self, body, repo, revision):
        found = self.repository(repo, write=True)
        asked = json.loads(body)
        if asked["tag"] in found.tags:
            raise Refused(409, "Tag reference exists already")
        found.tags[asked["tag"]] = found.resolve(revision)
        self.json({})

    def untag(self, body, repo, revision):
        found = self.repository(repo, write=True)
        if found.tags.pop(revision, None) is None:
            raise Refused(404, "Tag not found", "RevisionNotFound")
        self.json({})

    def file(self, body, repo, revision, path):
        found = self.repository(repo)
        commit = found.resolve(revision)
        content = found.files(commit).get(path)
        if content is None:
            raise Refused(404, "Entry not found", "EntryNotFound")
        headers = {"X_Repo_Commit": commit, "ETag": f'"{git_oid(content)}"'}
        if pointer := POINTER.fullmatch(content):
            sha256, size = pointer[1].decode(), pointer[2].decode()
            headers.update(X_Linked_Etag=f'"{sha256}"', X_Linked_Size=size)
            return self.answer(status=302, Location=f"{self.hub.storage_url}/{sha256}", **headers)
        self.answer(content, **headers)


REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
MODEL = f"/api/models/{REPO}"
REVISION = r"(?P<revision>[^/]+)"
ROUTES = [
    ("POST", "/api/repos/create", HubHandler.create),
    ("POST", "/api/validate-yaml", HubHandler.validate_card),
    ("GET", f"{MODEL}/refs", HubHandler.references),
    ("GET", MODEL, HubHandler.info),
    ("GET", f"{MODEL}/revision/{REVISION}", HubHandler.info),
    ("GET", f"{MODEL}/tree/{REVISION}", HubHandler.tree),
    ("POST", f"{MODEL}/preupload/{REVISION}", HubHandler.preupload),
    ("POST", f"/{REPO}.git/info/lfs/objects/batch", HubHandler.batch),
    ("POST", f"/{REPO}.git/info/lfs/objects/verify", HubHandler.verify),
    ("POST", f"{MODEL}/commit/{REVISION}", HubHandler.commit),
    ("POST", f"{MODEL}/tag/{REVISION}", HubHandler.tag),
    ("DELETE", f"{MODEL}/tag/{REVISION}", HubHandler.untag),
    ("GET", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", HubHandler.file),
    ("HEAD", f"/{REPO}/resolve/{REVISION}/(?P<path>.+)", HubHandler.file),
]
