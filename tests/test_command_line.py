"""Settings of a command line that no config has; the commands in the documents have none of them."""

import json
import re
import shlex
from pathlib import Path

import pytest

from custom_components.command_line import refuse_unknown_settings
from custom_components.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = "/somewhere/site-packages/monai/bundle/__main__.py"


@pytest.fixture
def config(tmp_path):
    for name, content in {
        "train": {"bundle_root": ".", "max_steps": 1, "num_labelled": None, "train": {"trainer": {}}},
        "own": {"head": "linear", "train#trainer#amp": True},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return str(tmp_path / "train.json")


def test_a_mistyped_setting_is_told_with_the_one_that_was_meant(config):
    with pytest.raises(
        InputError, match=r"^--num_label: no such setting in train.json; did you mean --num_labelled\?$"
    ):
        refuse_unknown_settings([PROGRAM, "run", "--config_file", config, "--num_label", "4", "--max_steps=3"])


def test_every_mistyped_setting_is_told(config):
    with pytest.raises(InputError) as caught:
        refuse_unknown_settings([PROGRAM, "run", f"--config_file={config}", "--max-step", "4", "--zzz", "-3"])
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == ["--max_step", "--zzz"]
    assert "leave this out" in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max_steps", "3", "--num-labelled=4", "--bundle_root", "."],
        ["--train#trainer#max_epochs", "3", "--train::trainer::max_epochs", "-3"],
        ["--run_id", "run", "--logging_file", "x.conf", "--meta_file", "y.json"],
        ["--workflow_type", "train", "--properties_path", "p.json", "--workflow_name", "ConfigWorkflow"],
    ],
)
def test_what_the_configs_and_monai_know_is_taken(config, arguments):
    refuse_unknown_settings([PROGRAM, "run", "--config_file", config, *arguments])


def test_a_setting_may_be_in_any_of_several_configs(config, tmp_path):
    own = str(tmp_path / "own.json")
    refuse_unknown_settings([PROGRAM, "run", "--config_file", f"['{config}','{own}']", "--head", "x"])
    with pytest.raises(InputError, match="--heads: no such setting in train.json, own.json; did you mean --head"):
        refuse_unknown_settings([PROGRAM, "run", "--config_file", f"['{config}','{own}']", "--heads", "x"])


def test_settings_of_an_arguments_file_are_settings_too(config, tmp_path):
    file = tmp_path / "args.json"
    file.write_text(json.dumps({"config_file": config, "max_stepss": 3}))
    with pytest.raises(InputError, match="--max_stepss"):
        refuse_unknown_settings([PROGRAM, "run", "--args_file", str(file)])


def test_other_programs_are_not_looked_at(config):
    refuse_unknown_settings(["/usr/bin/monailabel", "start_server", "--config_file", config, "--max_step", "4"])
    refuse_unknown_settings([PROGRAM, "run", "--max_step", "4"])


def commands_of_the_documents():
    """Every command that runs a bundle, in every document, with what the documents set before it."""
    for file in [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("bundles/*/docs/README.md")]:
        text = file.read_text().replace("\\\n", " ")
        places = dict(re.findall(r"\b([A-Z]+)=([\w/]+)", text))
        for command in re.findall(r"-m monai\.bundle (run [^\n`]*)", text):
            if "--config_file" in command:
                for name, place in places.items():
                    command = command.replace(f"${name}/", f"{place}/")
                yield file, command


def test_the_commands_in_the_documents_have_no_unknown_setting(monkeypatch):
    monkeypatch.chdir(ROOT)
    tried = 0
    for file, command in commands_of_the_documents():
        try:
            refuse_unknown_settings([PROGRAM, *shlex.split(command)])
        except FileNotFoundError:  # a bundle of the reader's own
            continue
        except InputError as error:
            pytest.fail(f"{file}: {command}: {error}")
        tried += 1
    assert tried > 30
