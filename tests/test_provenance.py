import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest

from custom_components import provenance
from custom_components.provenance import absolute_paths, git_commit, running_command, shell_command, without_places


@pytest.mark.parametrize(
    "argument", ["plain", "two words", "['a.json','b.json']", 'it\'s "both"', "$HOME's", "", "a\\'b"]
)
def test_a_command_comes_back_from_a_shell_as_it_was_given(argument):
    command = shell_command(["printf", "%s", argument])
    assert shlex.split(command) == ["printf", "%s", argument]
    assert subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout == argument


def test_a_list_of_files_is_written_to_be_read():
    assert shell_command(["run", "['a','b']"]) == "run \"['a','b']\""


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({}, "python"),
        (
            {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"},
            "torchrun --nproc_per_node=2",
        ),
        (
            {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "3"},
            "torchrun --nproc_per_node=4 --nnodes=3",
        ),
    ],
)
def test_the_command_is_that_of_the_program_that_runs_and_its_launcher(environment, launcher, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["/somewhere/__main__.py", "run", "--seed", "1"])
    spec = SimpleNamespace(name="monai.bundle.__main__")
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
    assert running_command() == f"{launcher} -m monai.bundle run --seed 1"
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=None))
    assert running_command() == f"{launcher} /somewhere/__main__.py run --seed 1"


def test_a_copy_inside_another_repository_has_no_commit(tmp_path, monkeypatch):
    def git(*arguments):
        name = ("-c", "user.name=a", "-c", "user.email=a@example.org")
        subprocess.run(["git", "-C", str(tmp_path), *name, *arguments], capture_output=True, check=True)

    git("init")
    copy = tmp_path / "release" / "provenance.py"
    copy.parent.mkdir()
    copy.touch()
    monkeypatch.setattr(provenance, "__file__", str(copy))
    (tmp_path / "README.md").touch()
    git("add", "README.md")
    git("commit", "-m", "the other project")
    assert git_commit() is None
    git("add", "release")
    git("commit", "-m", "now it is this one's")
    assert len(git_commit()) == 12


def test_absolute_paths_are_found_and_nothing_else():
    text = "python -m x --a /b/c --d=['e/f.json','/g/h.json'] --u https://server/x --k C:\\me\\scans --n 1/2"
    assert absolute_paths(text) == ["/b/c", "/g/h.json", "C:\\me\\scans"]
    assert without_places(text) == "python -m x --a c --d=['e/f.json','h.json'] --u https://server/x --k scans --n 1/2"
    spaces = "python -m x --a '/home/Jo Doe/scans' --b \"['/home/Jo Doe/x.json','y.json']\""
    assert without_places(spaces) == "python -m x --a 'scans' --b \"['x.json','y.json']\""
    option = "python -m x '--dataset_dir=/data/Study Mueller_Hans/ct' \"--b=/it's/y z\" --c=/d/e '--f g' --h"
    assert absolute_paths(option) == ["/data/Study Mueller_Hans/ct", "/it's/y z", "/d/e"]
    assert without_places(option) == "python -m x '--dataset_dir=ct' \"--b=y z\" --c=e '--f g' --h"
    assert (
        without_places("x --a file:///home/jo/scans --b '\\\\server\\share\\Mueller Hans\\mr'")
        == "x --a scans --b 'mr'"
    )
    assert without_places("/home/Jo Doe/scans,/home/Jo Doe/more") == "scans,more"
    assert without_places(["/a/b/", None, "c/d"]) == ["b", None, "c/d"]
