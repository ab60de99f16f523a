#!/usr/bin/env bash
# Set up the environment, check style and types, run the tests, two files at a time; arguments go to pytest:
# bash scripts/test.sh -m "not slow"
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup_env.sh dev
bin=${VENV:-.venv}/bin
"$bin/ruff" check .
"$bin/ruff" format --check .
"$bin/mypy"
# as many threads as two workers have cores
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
"$bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder "$@"
