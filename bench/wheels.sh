#!/usr/bin/env bash
# Collect the packages that `python -m bench.gpu` needs beside torch and transformers, for a GPU machine without a
# package registry: bench/wheels.sh [FOLDER]. There:
#   python3 -m pip install --no-index --no-deps --target SITE FOLDER/*.whl && export PYTHONPATH=SITE
# Section b (training) needs none of them.
set -euo pipefail
folder=${1:-.whl}
python=${PYTHON:-python3}
target=${TARGET_PYTHON:-3.12}
packages=(omegaconf datasets lm_eval dill multiprocess sniffio)
cd "$(dirname "$0")/.."
mkdir -p "$folder"
"$python" -m pip download --quiet --no-deps --only-binary=:all: --constraint constraints.txt \
    --python-version "$target" --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 \
    --platform manylinux2014_x86_64 --dest "$folder" "${packages[@]}"
# It has only a source package.
"$python" -m pip wheel --quiet --no-deps --constraint constraints.txt --wheel-dir "$folder" antlr4-python3-runtime
size=$(du --summarize --block-size=1M "$folder" | cut -f 1)
echo "$(ls "$folder" | wc -l) wheels, $size MiB: $folder"
if [ "$size" -gt 60 ]; then
    echo "more than 60 MiB" >&2
    exit 1
fi
