import shlex
import subprocess

import pytest

from custom_components.provenance import shell_command


@pytest.mark.parametrize(
    "argument", ["plain", "two words", "['a.json','b.json']", 'it\'s "both"', "$HOME's", "", "a\\'b"]
)
def test_a_command_comes_back_from_a_shell_as_it_was_given(argument):
    command = shell_command(["printf", "%s", argument])
    assert shlex.split(command) == ["printf", "%s", argument]
    assert subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True).stdout == argument


def test_a_list_of_files_is_written_to_be_read():
    assert shell_command(["run", "['a','b']"]) == "run \"['a','b']\""
