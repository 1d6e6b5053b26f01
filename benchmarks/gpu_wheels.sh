#!/usr/bin/env bash
# Fetch the wheels that benchmarks/gpu.sh installs on a machine without network, into a folder (default: .whl).
# That machine has Python 3.12 with PyTorch, transformers and the usual scientific packages; this is what it lacks.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=${1:-.whl}
python=${PYTHON:-.venv/bin/python}
platforms=()
for n in 2_28 2_27 2_24 2_17 2_12 2_5; do platforms+=(--platform "manylinux_${n}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux2010_x86_64 --platform manylinux1_x86_64)
rm -rf "$folder"
# Versions of constraints.txt, so that what is measured there is what is tested here.
pinned() { grep -i "^$1==" constraints.txt; }
for name in adjustText anndata array-api-compat donfig google-crc32c legacy-api-wrap natsort numcodecs pandas pooch \
  pynndescent scanpy session-info2 umap-learn zarr; do
  "$python" -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" -d "$folder" "$(pinned "$name")"
done
du -sh "$folder"
