"""Publishes a release on the Hugging Face Hub: what its repository holds, what a push would change, and the push.

One repository is one bundle's. Its branch `main` holds the newest version, unpacked for `monai.bundle download` and as
the archive with SHA256SUMS for `scripts.download`; every version has a tag, which never moves.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from custom_components.delivery import Unreachable, file_digest, split_name, unzip_bundle, version_key
from custom_components.errors import InputError
from custom_components.networks.weight_files import read_weights, write_state

from .checks import bundle_files
from .model_card import hub_library, model_card

# MONAI takes this tag where no version is asked for; without it, the last of all tags, whatever their order
LATEST = "latest_version"
# what the Hub itself puts into a new repository
FROM_THE_HUB = {".gitattributes", "README.md"}


@dataclass(frozen=True)
class Publication:
    """A version of a bundle as the folder that its repository is to hold."""

    name: str
    version: str
    folder: Path

    @property
    def tag(self) -> str:
        return f"v{self.version}"

    @property
    def archive(self) -> str:
        return f"{self.name}_v{self.version}.zip"

    def files(self) -> list[str]:
        """Relative paths, sorted."""
        return bundle_files(self.folder)


@dataclass(frozen=True)
class Plan:
    """What a push would do to a repository.

    Attributes:
        creates: there is none yet, or none that the token shows.
        published: the version is there already, with the same content.
        head: the commit that `main` is at, if any.
        tags: the tags that there are.
        added, changed, removed: files of `main`.
    """

    creates: bool = False
    published: bool = False
    head: str | None = None
    tags: frozenset[str] = frozenset()
    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()


def build_publication(archive: Path, repo: str, folder: Path) -> Publication:
    """Write the folder that the repository is to hold: the unzipped release, and what the Hub has besides.

    That is README.md (the model card), `models/model.safetensors` with the tensors of `models/model.pt`, the archive
    itself and SHA256SUMS.

    Args:
        archive: `NAME_vVERSION.zip`.
        repo: `OWNER/REPOSITORY`, for the model card.
        folder: where it goes, as `folder/NAME`; it must not be there.

    Raises:
        InputError: it is there; the archive is no bundle's; the bundle does not say what a model card must.
    """
    name, version = split_name(archive.stem)
    target = folder / name
    if version is None:
        raise InputError(f"{archive}: has no version in its name; scripts.release names it NAME_vVERSION.zip")
    if target.exists():
        raise InputError(f"{target}: exists; remove it, or pass another --output_dir")
    unzip_bundle(archive, name, target)
    weights = target / "models" / "model.pt"
    record = json.loads(weights.with_suffix(".json").read_text())
    provenance = {key: value for key, value in record.items() if key != "sha256"}
    provenance["same_tensors_as"] = {"file": weights.name, "sha256": record["sha256"]}
    write_state(read_weights(weights), weights.with_suffix(".safetensors"), provenance)
    shutil.copyfile(archive, target / archive.name)
    (target / "SHA256SUMS").write_text(f"{file_digest(archive)}  {archive.name}\n")
    (target / "README.md").write_text(model_card(target, repo))
    return Publication(name, version, target)


def connect(repo: str, write: bool = False) -> Any:
    """`huggingface_hub.HfApi`, with the token of HF_TOKEN or of a login; to read there need be none.

    Raises:
        InputError: `repo` is not `OWNER/REPOSITORY`, huggingface_hub is not installed, or no token to write with.
    """
    if re.fullmatch(r"[\w.-]+/[\w.-]+", repo) is None:
        raise InputError(f"{repo}: names no repository; expected OWNER/REPOSITORY")
    hub = hub_library()
    api = hub.HfApi()
    with _one_sentence(api, repo):
        api.token = hub.get_token()
    if write and not api.token:
        raise InputError("no token for the Hugging Face Hub: set HF_TOKEN, or log in with: hf auth login")
    return api


def plan_push(api: Any, publication: Publication, repo: str, private: bool = False) -> Plan:
    """Compare a publication with the repository; only reads.

    Raises:
        Unreachable: the Hub cannot be reached.
        InputError: the push would be refused: the tag is there with other content, the repository holds a newer
            version or something else, or it is public and `private` is asked for.
    """
    hub = hub_library()
    with _one_sentence(api, repo):
        try:
            tags = frozenset(tag.name for tag in api.list_repo_refs(repo).tags)
            is_tagged = publication.tag in tags
            info = api.model_info(repo, revision=publication.tag if is_tagged else None, files_metadata=True)
        except hub.errors.RepositoryNotFoundError:
            return Plan(creates=True, added=tuple(publication.files()))
    remote = {sibling.rfilename: sibling for sibling in info.siblings}
    if is_tagged:
        if not _is_same(publication.folder / publication.archive, remote.get(publication.archive)):
            raise InputError(
                f"{repo}: has the tag {publication.tag} with other content; a version is published once: raise version "
                f"in {publication.name}/configs/metadata.json"
            )
        return Plan(published=True, head=info.sha, tags=tags)
    _check_repository(publication, repo, tags, set(remote))
    if private and not info.private:
        raise InputError(f"{repo}: exists and is public; make it private in its settings first, or leave out --private")
    files = publication.files()
    same = {file for file in files if _is_same(publication.folder / file, remote.get(file))}
    return Plan(
        head=info.sha,
        tags=tags,
        added=tuple(file for file in files if file not in remote),
        changed=tuple(file for file in files if file in remote and file not in same),
        removed=tuple(sorted(set(remote) - set(files) - FROM_THE_HUB)),
    )


def _check_repository(publication: Publication, repo: str, tags: frozenset[str], remote: set[str]) -> None:
    """Raise where a push would replace what is not an older version of the same bundle."""
    versions = [tag[1:] for tag in tags if re.fullmatch(r"v\d+\.\d+\.\d+", tag)]
    newest = max(versions, key=version_key, default=publication.version)
    if version_key(newest) > version_key(publication.version):
        raise InputError(
            f"{repo}: has the tag v{newest}, which is newer than {publication.version}; raise version in "
            f"{publication.name}/configs/metadata.json"
        )
    own = re.compile(rf"{publication.name}_v\d+\.\d+\.\d+\.zip")
    others = sorted(remote - FROM_THE_HUB)
    if others and not any(own.fullmatch(file) for file in others):
        raise InputError(
            f"{repo}: holds something else than {publication.name} ({others[0]}, ...), which a push would remove; give "
            "the bundle a repository of its own"
        )


def _is_same(path: Path, remote: Any) -> bool:
    """Whether a file has the content of the Hub's, of which only the hash is asked for."""
    if remote is None:
        return False
    if remote.lfs is not None:
        return bool(file_digest(path) == remote.lfs.sha256)
    content = path.read_bytes()  # as git hashes it
    return bool(hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == remote.blob_id)


def push_publication(api: Any, publication: Publication, repo: str, plan: Plan, private: bool = False) -> str:
    """Upload what `plan` says as one commit, and tag it; returns the address of the version.

    The version's tag comes last, so that a push that broke is no publication, and the next one finishes it.

    Raises:
        InputError: the Hub refuses or fails.
    """
    hub = hub_library()
    folder = publication.folder
    operations = [hub.CommitOperationAdd(file, folder / file) for file in (*plan.added, *plan.changed)]
    operations += [hub.CommitOperationDelete(file) for file in plan.removed]
    with _one_sentence(api, repo):
        if plan.creates:
            # None: the owner's default, which may be private too
            api.create_repo(repo, private=private or None)
        commit = plan.head
        if operations:
            # not upload_folder, which may make several commits
            title = f"{publication.name} {publication.version}"
            commit = api.create_commit(repo, operations, commit_message=title, parent_commit=plan.head).oid
        if LATEST in plan.tags:
            api.delete_tag(repo, tag=LATEST)
        api.create_tag(repo, tag=LATEST, revision=commit)
        api.create_tag(repo, tag=publication.tag, revision=commit)
    return f"{api.endpoint}/{repo}/tree/{publication.tag}"


@contextmanager
def _one_sentence(api: Any, repo: str) -> Iterator[None]:
    """Around calls of huggingface_hub, which lets through the errors of its HTTP client, of JSON and of its threads."""
    try:
        yield
    except hub_library().errors.RepositoryNotFoundError as error:
        raise InputError(f"{api.endpoint}: has no {repo}, or hides it from this token") from error
    except Exception as error:
        raise _told(error, api.endpoint, repo) from error


def _told(error: Exception, endpoint: str, repo: str) -> InputError:
    """The sentence for an error of huggingface_hub."""
    errors = hub_library().errors
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None:
        chain.append(cause)
        cause = cause.__cause__
    for answer in chain:
        if isinstance(answer, errors.HfHubHTTPError) and answer.response is not None:
            status = answer.response.status_code
            said = " ".join(f"HTTP {status} {answer.server_message or ''}".split())[:300]
            if status == 401:
                return InputError(f"{endpoint}: does not accept the token ({said}); check HF_TOKEN, or: hf auth login")
            if status == 403:
                return InputError(f"{endpoint}: this token may not write to {repo} ({said}); use one that may")
            advice = "run it again later" if status >= 500 else "see what it says"
            return InputError(f"{endpoint}: did not publish {repo} ({said}); {advice}")
    if any(isinstance(answer, errors.HTTPError | OSError) for answer in chain):
        reason = " ".join(str(error).split())
        return Unreachable(
            f"{endpoint}: cannot be reached ({reason}); check the connection, HF_ENDPOINT and HTTPS_PROXY"
        )
    return InputError(f"{endpoint}: publishing {repo} failed ({type(error).__name__}: {' '.join(str(error).split())})")
