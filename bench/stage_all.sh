#!/usr/bin/env bash
# Builds all that a session on a GPU machine needs into .gpu/ (git-ignored, under 60 MiB), on a machine that has nvcc
# and no GPU: prebuilt kernels and artifacts, the apache-tvm-ffi wheel for the Python there, this tree's scripts.
#
#     PYTHON=.venv/bin/python bench/stage_all.sh                # every part of bench/parts
#     PYTHON=.venv/bin/python bench/stage_all.sh layer peers    # some; what was staged for others stays
#     FEW=1 PYTHON=.venv/bin/python bench/stage_all.sh check decoder layer    # what proves a commit, in few minutes
#
# The FlashInfer peer comes along where FLASHINFER names the flashinfer.txz that bench/flashinfer_prebuild.py made;
# without it the part `peers` measures the others.
# There, from the folder that holds .gpu/, with OUT a folder for results:
#
#     bash .gpu/run_all.sh layer check              # some parts, each under its own limit
#     SECONDS_LEFT=560 bash .gpu/run_all.sh         # all of them, as far as that many seconds reach
#
# A part is a file bench/parts/NAME.sh: `seconds` it may take there, `stage` builds here, `run` measures there.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=$(realpath -s "$(command -v "${PYTHON:-python3}")")
GPU=$PWD/.gpu
export PYTHON GPU PYTHONPATH=$PWD
mkdir -p "$GPU/wheels"

# artifact FLOW NAME [option ...]: .gpu/NAME.vxa for sm_90a
artifact() { "$PYTHON" -m vortex compile "$1" --target sm_90a --no-dump -o "$GPU/$2.vxa" "${@:3}"; }

if ! ls "$GPU"/wheels/apache_tvm_ffi-0.1.14.post1-cp312-*.whl > /dev/null 2>&1; then
  "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 -d "$GPU/wheels" apache-tvm-ffi==0.1.14.post1
fi
[ -z "${FLASHINFER:-}" ] || cp -u "$FLASHINFER" "$GPU/flashinfer.txz"
rm -rf "$GPU/src"
mkdir -p "$GPU/src"
git ls-files -z vortex bench ':!bench/results' | xargs -0 cp --parents -t "$GPU/src"
cp bench/run_all.sh "$GPU/run_all.sh"
git rev-parse HEAD > "$GPU/commit"
for part in "${@:-}"; do
  for file in bench/parts/${part:-*}.sh; do
    echo "== $(basename "$file" .sh)"
    (
      stage() { :; }
      source "$file"
      stage
    )
  done
done
du -sh "$GPU"
