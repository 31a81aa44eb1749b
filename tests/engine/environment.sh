#!/usr/bin/env bash
# Makes the environment in which the engine tests run SGLang on a CPU, unless it is there already.
#
#   tests/engine/environment.sh VERSION FOLDER     e.g. 0.5.23 .venv-engine-0.5.23
#
# About 300 MB of downloads with a CPU build of torch, 2 GB on disk, 80 seconds. PYTHON, TORCH and PIP_FLAGS as in the
# Makefile. vortex itself is installed without its compiler: tests compile in the environment that runs pytest.
set -euo pipefail
version=$1 folder=$2
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)

case $version in
  0.5.16) pins=(sglang==0.5.16 transformers==5.12.1 tokenizers==0.22.2) ;;
  0.5.23) pins=(sglang==0.5.23 transformers==5.19.0 tokenizers==0.23.1) ;;
  *) echo "no pins for SGLang $version" >&2; exit 2 ;;
esac

stamp=$folder/.ready
want=$(cat "$0" "$here/requirements.txt" "$root/pyproject.toml" | sha256sum | cut -d' ' -f1)
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
  exit 0
fi

echo "making $folder for SGLang $version"
"${PYTHON:-python3}" -m venv --clear "$folder"
pip=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check)
read -r -a flags <<<"${PIP_FLAGS:-}"
"${pip[@]}" "${flags[@]}" "${TORCH:-torch==2.13.0}" 'setuptools>=77'
"${pip[@]}" "${flags[@]}" --no-deps -r "$here/requirements.txt" "${pins[@]}"
"${pip[@]}" --no-deps --no-build-isolation -e "$root"
echo "$want" >"$stamp"
