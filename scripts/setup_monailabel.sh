#!/usr/bin/env bash
# Make .venv-monailabel (or $VENV), the environment of MONAI Label's server, once. It needs numpy 1, so it has one of its own.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv-monailabel}
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then
    echo "error: $("$python" --version) found, but MONAI Label is tested with Python 3.11; set PYTHON to one" >&2
    exit 1
fi
stamp=$venv/installed
wanted=$(cat constraints.txt requirements-monailabel.txt setup.cfg scripts/setup_monailabel.sh | cksum)
if "$venv/bin/python" -c '' 2>/dev/null && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi
echo "Setting up $venv for MONAI Label: a few minutes, once"
if ! "$venv/bin/python" -c '' 2>/dev/null; then
    # one whose Python is gone is made anew; nothing else is cleared
    if [ -f "$venv/pyvenv.cfg" ]; then "$python" -m venv --clear "$venv"; else "$python" -m venv "$venv"; fi
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
# torch first, so that nothing else chooses its version
pip install --quiet "$(grep '^torch==' constraints.txt)"
pip install --quiet --requirement requirements-monailabel.txt
# their own lists ask for more than a server of 3D scans calls, and for a newer numpy
pip install --quiet --no-deps monailabel==0.8.5
pip install --quiet --no-deps --editable .
echo "$wanted" >"$stamp"
