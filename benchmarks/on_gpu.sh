#!/usr/bin/env bash
# Everything that needs a GPU, most important first, within 9 minutes, on a bare machine without a network:
#
#     benchmarks/on_gpu.sh                       results in benchmarks/results/gpu, or in the folder named by OUT
#     benchmarks/on_gpu.sh --dry-run             every step on the CPU at tiny sizes, results in a new folder
#     benchmarks/on_gpu.sh --help                steps, time limits
#
# Nothing has to be installed but Python, torch, Triton, pytest, pytest-benchmark, hypothesis, matplotlib and scipy; the
# run of the whole pipeline takes part where its other packages can be imported, and says so where they cannot.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python3}" -m benchmarks.on_gpu "$@"
