import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
import zipfile

import nibabel as nib
import pytest
import torch
import yaml

from custom_components import load_backbone
from custom_components.data import make_phantom
from custom_components.delivery import Unreachable, download_bundle, unzip_bundle
from custom_components.errors import InputError
from custom_components.networks.weight_files import read_weights
from custom_components.release import build_publication, connect, model_card, pack_bundle, plan_push, push_publication
from scripts.publish import publish

from .conftest import BUNDLES, SEGMENTER, SSL, make_bundle
from .hub_server import running_hub

constants = pytest.importorskip("huggingface_hub").constants
REPO = f"somebody/{SSL}"
FIGURES = """# {name}

Segments what it was trained on, see [the other bundle](../../mri_dense_ssl/docs/README.md).

Research only; it has seen cropped scans alone.

## Run it

Elsewhere.

## Released weights

SHA-256 {sha256}, ![a picture](dice.png), [scores](scores.csv).

| labelled scans | mean Dice |
| --- | --- |
| 140 | 0.881 |
"""


def make_document(bundle):
    """A bundle's docs/README.md and metadata.json with what a model card needs."""
    path = bundle / "configs" / "metadata.json"
    metadata = json.loads(path.read_text())
    weights = metadata["weights"]["models/model.pt"]
    weights.update(license="cc-by-sa-4.0", data="data/Task04_Hippocampus")
    path.write_text(json.dumps(metadata))
    (bundle / "docs" / "README.md").write_text(FIGURES.format(name=bundle.name, sha256=weights["sha256"]))
    return bundle


@pytest.fixture(scope="session")
def archives(tmp_path_factory):
    """Packed bundles by name and version."""
    packed = {}
    for name, version in ((SSL, "0.9.0"), (SSL, "0.10.0"), (SEGMENTER, "0.1.0")):
        folder = tmp_path_factory.mktemp("source")
        make_document(make_bundle(SSL, folder, version))
        if name != SSL:
            make_document(make_bundle(name, folder, version))
        packed[name, version] = pack_bundle(folder / name, folder / f"{name}_v{version}.zip")
    return packed


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub for this process, with the token of somebody who may write."""
    with running_hub(tmp_path / "hub") as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setattr(constants, "AGENT_HARNESSES_PATH", str(tmp_path / "harnesses"))
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        monkeypatch.setenv("HF_TOKEN", "hf_writer")
        yield running


@pytest.fixture
def push(archives, tmp_path):
    """A function that publishes one of the archives, and returns its plan."""
    numbers = itertools.count()

    def publish_archive(name=SSL, version="0.9.0", repo=REPO, private=False):
        folder = tmp_path / "built" / str(next(numbers))
        built = build_publication(archives[name, version], repo, folder)
        api = connect(repo, write=True)
        plan = plan_push(api, built, repo, private)
        if not plan.published:
            push_publication(api, built, repo, plan, private)
        return plan

    return publish_archive


def header_of(text):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1])


@pytest.mark.parametrize("name", [SSL, SEGMENTER])
def test_the_header_of_a_model_card_has_the_figures_of_the_metadata(name, archives, tmp_path):
    archive = next(path for (packed, _), path in archives.items() if packed == name)
    built = build_publication(archive, REPO, tmp_path / "own")
    metadata = json.loads((built.folder / "configs" / "metadata.json").read_text())
    header = header_of((built.folder / "README.md").read_text())
    assert header["license"] == "cc-by-sa-4.0" and header["library_name"] == "monai"
    assert header["tags"] == ["monai", "medical", "mr"]
    if name == SSL:
        assert header["pipeline_tag"] == "image-feature-extraction" and "model-index" not in header
        return
    assert header["pipeline_tag"] == "image-segmentation"
    [result] = header["model-index"][0]["results"]
    assert result["dataset"]["name"] == "Task04_Hippocampus"
    figures = metadata["eval_metrics"]
    assert result["metrics"] == [{"type": "dice", "value": value, "name": name} for name, value in figures.items()]
    assert list(figures) == ["mean_dice", "dice_Anterior", "dice_Posterior"]


def test_a_model_card_says_what_the_documents_of_the_bundle_say(archives, tmp_path):
    built = build_publication(archives[SEGMENTER, "0.1.0"], REPO, tmp_path / "own")
    text = (built.folder / "README.md").read_text()
    metadata = json.loads((built.folder / "configs" / "metadata.json").read_text())
    for key in ("description", "intended_use", "data_source", "copyright"):
        assert metadata[key] in text
    assert all(f"* {reference}\n" in text for reference in metadata["references"])
    assert "This is not a medical device." in text and "it has seen cropped scans alone" in text
    assert "| 140 | 0.881 |" in text and "Elsewhere" not in text
    for file in ("model.pt", "model.safetensors", "pretrained.pt"):
        sha256 = hashlib.sha256((built.folder / "models" / file).read_bytes()).hexdigest()
        assert f"| `models/{file}` | `{sha256}` |" in text
    # no figure that is not in the documents
    decimal = r"\b0\.\d{2,}"
    assert set(re.findall(decimal, text)) <= set(re.findall(decimal, FIGURES + json.dumps(metadata)))


def test_links_of_the_documents_lead_to_the_same_file_from_the_model_card(archives, tmp_path):
    built = build_publication(archives[SEGMENTER, "0.1.0"], REPO, tmp_path / "own")
    text = (built.folder / "README.md").read_text()
    assert "![a picture](docs/dice.png), [scores](docs/scores.csv)" in text
    assert "see the other bundle." in text


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("configs/metadata.json", lambda text: text.replace('"license"', '"x"'), "metadata.json: .* has no license"),
        (
            "docs/README.md",
            lambda text: text.replace("## Released weights", "## Other"),
            "no section 'Released weights'",
        ),
        ("docs/README.md", lambda text: text.replace("| --- | --- |\n", ""), "with a table of figures"),
    ],
)
def test_without_licence_or_figures_there_is_no_model_card(file, change, message, archives, tmp_path):
    folder = unzip_bundle(archives[SSL, "0.9.0"], SSL, tmp_path / SSL)
    (folder / file).write_text(change((folder / file).read_text()))
    with pytest.raises(InputError, match=message):
        model_card(folder, REPO)


def test_safetensors_hold_the_tensors_of_the_weights_and_their_provenance(archives, tmp_path):
    safe_open = pytest.importorskip("safetensors").safe_open
    built = build_publication(archives[SSL, "0.9.0"], REPO, tmp_path / "own")
    models = built.folder / "models"
    state = torch.load(models / "model.pt", weights_only=True)
    other = read_weights(models / "model.safetensors")
    assert other.keys() == state.keys()
    assert all(torch.equal(other[key], state[key]) and other[key].dtype == state[key].dtype for key in state)
    with safe_open(models / "model.safetensors", "pt") as file:
        provenance = json.loads(file.metadata()["provenance"])
    assert provenance["data"] == "phantoms"
    sha256 = hashlib.sha256((models / "model.pt").read_bytes()).hexdigest()
    assert provenance["same_tensors_as"] == {"file": "model.pt", "sha256": sha256}
    again = build_publication(archives[SSL, "0.9.0"], REPO, tmp_path / "again").folder / "models" / "model.safetensors"
    assert again.read_bytes() == (models / "model.safetensors").read_bytes()


def test_what_is_published_is_the_release_and_what_the_hub_has_besides(archives, tmp_path, hub, push):
    push()
    repository = hub.repositories[REPO]
    files = repository.files(repository.head)
    with zipfile.ZipFile(archives[SSL, "0.9.0"]) as archive:
        released = {name.removeprefix(f"{SSL}/"): archive.read(name) for name in archive.namelist()}
    besides = {".gitattributes", "README.md", "SHA256SUMS", f"{SSL}_v0.9.0.zip"}
    besides |= {"models/model.safetensors", "models/model.safetensors.json"}
    assert set(files) == set(released) | besides
    for path, content in released.items():
        sha256 = hashlib.sha256(content).hexdigest()
        assert files[path] == content or sha256.encode() in files[path] and hub.large(sha256).read_bytes() == content
    assert b"git-lfs" in files["models/model.pt"] and hub.refusals == []
    # one commit after the Hub's own, with both tags
    assert len(repository.commits) == 2
    assert repository.tags == {"v0.9.0": repository.head, "latest_version": repository.head}
    assert not repository.private


def test_a_dry_run_only_reads(archives, tmp_path, hub, push):
    built = build_publication(archives[SSL, "0.9.0"], REPO, tmp_path / "own")
    plan = plan_push(connect(REPO), built, REPO)
    assert plan.creates and plan.added == tuple(built.files())
    push()
    hub.requests.clear()
    later = build_publication(archives[SSL, "0.10.0"], REPO, tmp_path / "later")
    plan = plan_push(connect(REPO), later, REPO)
    assert hub.requests and hub.written() == []
    assert not plan.creates and plan.added == (f"{SSL}_v0.10.0.zip",) and plan.removed == (f"{SSL}_v0.9.0.zip",)
    assert {"README.md", "SHA256SUMS", "configs/metadata.json"} <= set(plan.changed)
    assert "LICENSE" not in plan.changed


def test_a_dry_run_needs_neither_token_nor_repository(archives, tmp_path, hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    built = build_publication(archives[SSL, "0.9.0"], REPO, tmp_path / "own")
    assert plan_push(connect(REPO), built, REPO).creates


def test_the_same_version_again_is_already_published(hub, push):
    assert not push().published
    hub.requests.clear()
    assert push().published
    assert hub.written() == [] and len(hub.repositories[REPO].commits) == 2


def test_a_version_is_not_published_with_another_content(archives, tmp_path, hub, push):
    push()
    source = tmp_path / "source"
    make_document(make_bundle(SSL, source, "0.9.0"))  # other random weights
    built = build_publication(pack_bundle(source / SSL, source / f"{SSL}_v0.9.0.zip"), REPO, tmp_path / "other")
    hub.requests.clear()
    with pytest.raises(InputError, match="has the tag v0.9.0 with other content; .* raise version in"):
        plan_push(connect(REPO), built, REPO)
    assert hub.written() == []


def test_a_new_version_replaces_the_files_and_keeps_the_old_one_under_its_tag(hub, push, tmp_path):
    push()
    push(version="0.10.0")
    repository = hub.repositories[REPO]
    first, second = repository.tags["v0.9.0"], repository.tags["v0.10.0"]
    assert repository.commits[1:] == [first, second] and repository.tags["latest_version"] == second
    assert f"{SSL}_v0.9.0.zip" in repository.files(first) and f"{SSL}_v0.9.0.zip" not in repository.files(second)


def test_a_version_older_than_the_newest_is_not_published_after_it(hub, push, archives, tmp_path):
    push(version="0.10.0")
    built = build_publication(archives[SSL, "0.9.0"], REPO, tmp_path / "own")
    with pytest.raises(InputError, match="has the tag v0.10.0, which is newer than 0.9.0; raise version in"):
        plan_push(connect(REPO), built, REPO)


def test_a_push_that_broke_is_finished_by_the_next_one(hub, push):
    hub.broken, hub.broken_path = 400, "/tag/"
    with pytest.raises(InputError, match="HTTP 400 Something went wrong"):
        push()
    assert "v0.9.0" not in hub.repositories[REPO].tags
    hub.broken = None
    assert not push().published
    repository = hub.repositories[REPO]
    assert len(repository.commits) == 2 and repository.tags["v0.9.0"] == repository.head


def test_a_repository_of_something_else_is_left_alone(hub, push, archives, tmp_path):
    push(name=SEGMENTER, version="0.1.0")
    hub.requests.clear()
    built = build_publication(archives[SSL, "0.9.0"], REPO, tmp_path / "own")
    with pytest.raises(InputError, match=f"holds something else than {SSL} .* a repository of its own"):
        plan_push(connect(REPO), built, REPO)
    assert hub.written() == []


def test_private_is_for_repositories_that_are_or_become_private(hub, push, archives, tmp_path):
    push(private=True)
    assert hub.repositories[REPO].private
    push(version="0.10.0", private=True)
    push(repo="somebody/public")
    with pytest.raises(InputError, match="somebody/public: exists and is public"):
        push(version="0.10.0", repo="somebody/public", private=True)


def test_without_a_token_nothing_is_pushed(hub, push, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(InputError, match="no token .*: set HF_TOKEN, or log in with: hf auth login"):
        push()
    assert hub.written() == []


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        ("hf_unknown", REPO, r"does not accept the token \(HTTP 401 Invalid credentials"),
        ("hf_reader", REPO, rf"may not write to {REPO} \(HTTP 403 You don't have the rights"),
        ("hf_writer", "another/bundle", r"may not write to another/bundle \(HTTP 403"),
        ("hf_writer", "no_owner", "names no repository; expected OWNER/REPOSITORY"),
        ("hf_writer", "somebody/two--dashes", "publishing somebody/two--dashes failed"),
    ],
)
def test_what_the_hub_refuses_is_told_in_a_sentence(token, repo, message, hub, push, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InputError, match=message) as refused:
        push(repo=repo)
    assert "\n" not in str(refused.value) and token not in str(refused.value)


def test_a_licence_that_the_hub_does_not_know_is_told(archives, tmp_path, hub):
    folder = tmp_path / "source"
    bundle = make_document(make_bundle(SSL, folder))
    metadata = (bundle / "configs" / "metadata.json").read_text()
    (bundle / "configs" / "metadata.json").write_text(metadata.replace("cc-by-sa-4.0", "free"))
    built = build_publication(pack_bundle(bundle, folder / f"{SSL}_v0.1.0.zip"), REPO, tmp_path / "own")
    api = connect(REPO)
    with pytest.raises(InputError, match='"license" must be one of the known ones'):
        push_publication(api, built, REPO, plan_push(api, built, REPO))
    assert hub.repositories[REPO].tags == {}


@pytest.mark.parametrize(
    ("broken", "path", "message"),
    [
        (500, "", r"HTTP 500 Something went wrong\); run it again later"),
        (503, "/preupload/", r"HTTP 503 Something went wrong\); run it again later"),
        (500, "/objects/batch", r"HTTP 500 Something went wrong\); run it again later"),
        (500, "/commit/", r"HTTP 500 Something went wrong\); run it again later"),
        (404, "/objects/verify", r"HTTP 404 Something went wrong\); see what it says"),
        ("page", "", "failed .JSONDecodeError"),
    ],
)
def test_a_hub_that_fails_is_told_in_a_sentence(broken, path, message, hub, push):
    hub.broken, hub.broken_path = broken, path
    with pytest.raises(InputError, match=message) as failed:
        push()
    assert "\n" not in str(failed.value)
    assert not any(repository.tags for repository in hub.repositories.values())


def test_a_commit_that_somebody_else_made_meanwhile_is_not_written_over(hub, push, archives, tmp_path):
    push()
    built = build_publication(archives[SSL, "0.10.0"], REPO, tmp_path / "own")
    api = connect(REPO)
    plan = plan_push(api, built, REPO)
    repository = hub.repositories[REPO]
    theirs = repository.commit({**repository.files(repository.head), "README.md": b"theirs"})
    with pytest.raises(InputError, match="HTTP 412 A commit has happened since"):
        push_publication(api, built, REPO, plan)
    assert repository.head == theirs and "v0.10.0" not in repository.tags


def test_a_hub_that_cannot_be_reached_is_told_and_no_fault_of_a_dry_run(archives, tmp_path, hub, push, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    built = build_publication(archives[SSL, "0.9.0"], REPO, tmp_path / "own")
    with pytest.raises(Unreachable, match="http://127.0.0.1:9: cannot be reached .*; check the connection"):
        plan_push(connect(REPO), built, REPO)


def test_the_archive_in_a_repository_is_a_source_of_downloads(hub, push, own_cache):
    push()
    push(version="0.10.0")
    assert download_bundle(SSL, source=f"hub:{REPO}") == own_cache / f"{SSL}_v0.10.0"
    older = download_bundle(SSL, "0.9.0", source=f"hub:{REPO}@v0.9.0")
    assert older == own_cache / f"{SSL}_v0.9.0" and load_backbone(older).num_scales == 3
    with pytest.raises(InputError, match=f"has no bundle {SSL} 0.9.1; it has {SSL}_v0.10.0"):
        download_bundle(SSL, "0.9.1", source=f"hub:{REPO}")
    assert hub.refusals == []


@pytest.fixture
def packed(archives, monkeypatch):
    """`scripts.publish` with an archive that is already checked and packed."""
    monkeypatch.setattr("scripts.publish.release_bundles", lambda *arguments, **settings: [archives[SSL, "0.9.0"]])


def test_the_command_shows_what_it_would_send_and_sends_it_with_push(packed, hub, tmp_path, capsys):
    publish(SSL, REPO, output_dir=str(tmp_path / "kept"))
    shown = capsys.readouterr().out
    kept = tmp_path / "kept" / SSL
    for path in kept.rglob("*"):
        if path.is_file():
            size = f"{path.stat().st_size / 1000:,.1f} kB"
            assert f"{size}  {path.relative_to(kept).as_posix()}\n" in shown
    assert "license: cc-by-sa-4.0" in shown and "tag v0.9.0" in shown
    assert f"* create {REPO}\n* add " in shown and "* tag the commit v0.9.0\ndry run: nothing was sent" in shown
    assert hub.written() == [] and hub.repositories == {}
    publish(SSL, REPO, push=True)
    assert f"published: {hub.url}/{REPO}/tree/v0.9.0" in capsys.readouterr().out
    publish(SSL, REPO, push=True)
    assert "v0.9.0 is already published with this content" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="publish: .*mri_dense_ssl: exists; remove it, or pass another --output_dir"):
        publish(SSL, REPO, output_dir=str(tmp_path / "kept"))


def test_without_a_connection_the_command_still_shows_what_would_be_uploaded(packed, monkeypatch, capsys):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", "hf_writer")
    publish(SSL, REPO)
    assert "what --push would change is not known: http://127.0.0.1:9: cannot be reached" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="^publish: http://127.0.0.1:9: cannot be reached"):
        publish(SSL, REPO, push=True)


def test_without_the_package_huggingface_hub_a_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub.errors", None)
    with pytest.raises(SystemExit, match="publish: .* pip install 'huggingface_hub>="):
        publish(SSL, REPO)


def run(command, cwd, **variables):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        cwd=cwd,
        env={**environment, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_what_is_published_is_downloaded_and_run_by_monai_alone(bundles, tmp_path, hub):
    for name in (SSL, SEGMENTER):
        make_document(bundles / name)
    repo, home = f"somebody/{SEGMENTER}", {"HF_HOME": str(tmp_path / "home")}
    command = ["-m", "scripts.publish", SEGMENTER, "--repo", repo, "--bundles_dir", str(bundles), "--push"]
    shown = run(command, BUNDLES.parent, HF_HUB_DISABLE_XET="1", **home)
    assert f"published: {hub.url}/{repo}/tree/v0.1.0" in shown and hub.refusals == []
    # the model card's own commands, as somebody without a token
    card = (hub.repositories[repo].folder / hub.repositories[repo].head / "README.md").read_text()
    lines = re.findall(r"^    python -m (monai.bundle (?:.*\\\n)*.*)", card, flags=re.MULTILINE)
    download, inference = (line.replace("\\\n", " ").split() for line in lines)
    image, _, affine = make_phantom("mri", 0, shape=(40, 40, 32), spacing=(1.0, 1.0, 1.0))
    (tmp_path / "scans").mkdir()
    nib.save(nib.Nifti1Image(image, affine), tmp_path / "scans" / "phantom.nii.gz")
    run(["-m", *download], tmp_path, HF_TOKEN="", **home)
    downloaded = tmp_path / "models" / SEGMENTER / "models" / "model.pt"
    assert downloaded.read_bytes() == (bundles / SEGMENTER / "models" / "model.pt").read_bytes()
    run(["-m", *inference], tmp_path, **home)
    result = nib.load(tmp_path / "out" / "phantom_seg.nii.gz")
    assert result.shape == image.shape
    # the same without --version, and the backbone as the model card says
    unversioned = [word for word in download if word not in ("--version", "v0.1.0")]
    run(["-m", *[word.replace("models", "newest") for word in unversioned]], tmp_path, HF_TOKEN="", **home)
    [python] = re.findall(r"^    from custom_components .*\n    backbone = .*$", card, flags=re.MULTILINE)
    code = "\n".join(line.strip() for line in python.splitlines())
    shown = run(["-c", f"{code}\nprint(backbone.num_scales)"], tmp_path / "newest" / SEGMENTER, **home)
    assert shown == "3\n"
