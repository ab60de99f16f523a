#!/usr/bin/env bash
# Make the virtual environment .venv (or $VENV) with the pinned versions, once: bash scripts/setup_env.sh [EXTRA]
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
python=${PYTHON:-python3}
target=.${1:+[$1]}

if ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))'; then
    echo "error: $("$python" --version) found, but Python 3.10, 3.11 or 3.12 is needed; set PYTHON to one" >&2
    exit 1
fi
stamp=$venv/installed
wanted=$(cat constraints.txt setup.cfg pyproject.toml <(echo "$target") | cksum)
# an environment with an extra has all that one without has
if "$venv/bin/python" -c '' 2>/dev/null && { [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] || { [ -z "${1:-}" ] && [ -f "$stamp" ] &&
    [ "$(cat "$stamp")" = "$(cat constraints.txt setup.cfg pyproject.toml <(echo '.[dev]') | cksum)" ]; }; }; then
    exit 0
fi
echo "Setting up $venv for $target: a few minutes, once"
if ! "$venv/bin/python" -c '' 2>/dev/null; then
    # one whose Python is gone is made anew; nothing else is cleared
    if [ -f "$venv/pyvenv.cfg" ]; then "$python" -m venv --clear "$venv"; else "$python" -m venv "$venv"; fi
fi
pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
# torch first, so that nothing else chooses its version
pip install --quiet "$(grep '^torch==' constraints.txt)"
pins=constraints.txt
# numpy 2.4 and its companions need Python 3.11: on 3.10 pip chooses within the ranges of setup.cfg
if "$venv/bin/python" -c 'import sys; sys.exit(sys.version_info >= (3, 11))'; then
    pins=$(mktemp)
    grep -E '^(torch|monai|pytorch-ignite|fire)==' constraints.txt >"$pins"
fi
pip install --quiet --constraint "$pins" --editable "$target"
echo "$wanted" >"$stamp"
