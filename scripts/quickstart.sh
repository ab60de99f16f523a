#!/usr/bin/env bash
# From nothing to a segmented phantom: sets up the environment, then runs scripts/quickstart.py
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup_env.sh
exec "${VENV:-.venv}/bin/python" -m scripts.quickstart "$@"
