"""Publish a bundle with its model card on the Hugging Face Hub; without --push, show what would be sent.

python -m scripts.publish mri_dense_ssl --repo OWNER/REPOSITORY
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import fire

from custom_components.delivery import Unreachable
from custom_components.errors import InputError
from custom_components.release import (
    Plan,
    Publication,
    build_publication,
    connect,
    plan_push,
    push_publication,
    release_bundles,
)

from .release import BUNDLES


def publish(
    name: str,
    repo: str,
    push: bool = False,
    private: bool = False,
    output_dir: str | None = None,
    bundles_dir: str = str(BUNDLES),
) -> None:
    """Check, pack and try a bundle, show what its repository would hold, and with --push upload and tag it.

    Args:
        name: the bundle; it must have models/model.pt.
        repo: OWNER/REPOSITORY on the Hub, one for each bundle; it is created if it is not there.
        push: send it; else nothing is written on the Hub.
        private: create the repository as a private one.
        output_dir: keep what would be uploaded there, as output_dir/NAME.
        bundles_dir: folder of the bundles.
    """
    name, repo = str(name), str(repo)
    try:
        api = connect(repo, write=push)
        print(f"checking, packing and trying {name}")
        with tempfile.TemporaryDirectory() as scratch:
            [archive] = release_bundles(Path(str(bundles_dir)), Path(scratch), [name], say=lambda text: None)
            built = build_publication(archive, repo, Path(scratch if output_dir is None else str(output_dir)))
            _show(built, repo, api.endpoint)
            try:
                plan = plan_push(api, built, repo, private)
            except Unreachable as error:
                if push:
                    raise
                print(f"\nwhat --push would change is not known: {error}")
                return
            print(f"\n{_in_words(plan, built, repo)}")
            if plan.published:
                return
            if push:
                print(f"published: {push_publication(api, built, repo, plan, private)}")
            else:
                print("dry run: nothing was sent; --push does it")
    except (InputError, OSError) as error:
        sys.exit(f"publish: {error}")


def _show(built: Publication, repo: str, endpoint: str) -> None:
    files = built.files()
    sizes = [(built.folder / file).stat().st_size for file in files]
    print(f"{built.name} {built.version} for {repo} at {endpoint}, tag {built.tag}\n")
    for file, size in zip(files, sizes):
        print(f"{size / 1000:12,.1f} kB  {file}")
    print(f"{sum(sizes) / 1000:12,.1f} kB  in {len(files)} files\n")
    print((built.folder / "README.md").read_text().split("\n## ")[0].strip())


def _in_words(plan: Plan, built: Publication, repo: str) -> str:
    if plan.published:
        return f"{repo}: {built.tag} is already published with this content"
    parts = {"add": plan.added, "change": plan.changed, "remove": plan.removed}
    steps = [f"create {repo}"] if plan.creates else []
    steps += [f"{verb} {len(files)} files ({_named(files)})" for verb, files in parts.items() if files]
    return "\n".join(["--push:", *(f"* {step}" for step in steps), f"* tag the commit {built.tag}"])


def _named(files: tuple[str, ...]) -> str:
    return ", ".join(files[:5]) + (", ..." if len(files) > 5 else "")


if __name__ == "__main__":
    fire.Fire(publish)
