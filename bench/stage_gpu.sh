#!/usr/bin/env bash
# Builds all that a GPU machine needs into .gpu/ (git-ignored, well under 60 MiB): prebuilt kernels for sm_90a, the
# apache-tvm-ffi wheel for its Python, and the scripts. PYTHON is an interpreter with vortex[compile].
#
#     PYTHON=/path/to/python bench/stage_gpu.sh
#
# There, from the repository root with .gpu/ carried along, OUT being a folder for results:
#
#     bash .gpu/run.sh
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
mkdir -p .gpu/wheels
PYTHONPATH=. "$PYTHON" bench/stage_gpu.py --out .gpu "$@"
if ! ls .gpu/wheels/apache_tvm_ffi-0.1.14.post1-cp312-*.whl > /dev/null 2>&1; then
  "$PYTHON" -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.12 \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 -d .gpu/wheels apache-tvm-ffi==0.1.14.post1
fi
cp bench/gpu_check.py bench/gpu_kernels.py bench/gpu_batches.py .gpu/
cat > .gpu/run.sh <<'RUN'
set -eu
here="$(cd "$(dirname "$0")" && pwd)"
python3 -c 'import torch, tvm_ffi' 2> /dev/null || {
  site="$(mktemp -d)"
  python3 -m zipfile -e "$here"/wheels/*.whl "$site"
  export PYTHONPATH="$site"
}
mkdir -p "${OUT:-$here/out}"
python3 "$here/gpu_check.py" --kernels "$here" --out "${OUT:-$here/out}/attend_check.json" || echo "CHECK FAILED"
python3 "$here/gpu_kernels.py" --kernels "$here" --out "${OUT:-$here/out}/attend_kernels.json" "$@"
RUN
du -sh .gpu
