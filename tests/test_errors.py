import subprocess
import sys

from custom_components.errors import InputError, find_input_error


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


PLAIN = "from custom_components.errors import InputError, report_plainly; report_plainly()\n"


def test_an_input_error_ends_the_program_with_its_sentence_alone():
    done = run(PLAIN + "raise InputError('scan.nii.gz: is empty; remove it')")
    assert (done.returncode, done.stderr) == (1, "error: scan.nii.gz: is empty; remove it\n")


def test_a_wrapped_input_error_is_found():
    done = run(
        PLAIN + "try:\n raise InputError('told')\nexcept InputError as e:\n raise RuntimeError('wrapped') from e"
    )
    assert done.stderr == "error: told\n"


def test_an_engine_that_an_input_error_or_ctrl_c_ends_logs_no_traceback():
    engine = """
import logging
from ignite.engine import Engine
logging.basicConfig(level=logging.INFO)
report_plainly()
def step(engine, batch):
    raise {error}
engine = Engine(step)
from monai.handlers import StatsHandler
StatsHandler(iteration_log=False, epoch_log=False).attach(engine)
engine.run([0])
"""
    for error, sentence in (("InputError('told')", "error: told\n"), ("KeyboardInterrupt", "stopped: ")):
        done = run(PLAIN + engine.format(error=error))
        assert done.returncode != 0
        assert not any(word in done.stderr + done.stdout for word in ("Traceback", "ERROR"))
        assert done.stderr.splitlines(keepends=True)[-1].startswith(sentence)
    done = run(PLAIN + engine.format(error="KeyError('x')"))
    assert "ERROR" in done.stderr and "Traceback" in done.stderr


def test_other_errors_keep_their_traceback():
    done = run(PLAIN + "1 / 0")
    assert done.returncode == 1 and "Traceback" in done.stderr and "ZeroDivisionError" in done.stderr


def test_no_input_error_in_a_chain_is_none():
    assert find_input_error(KeyError("x")) is None
    assert isinstance(find_input_error(InputError("x")), ValueError)
