#!/usr/bin/env bash
# Packs SGLang for a GPU machine without a network: FOLDER/site.txz, 23 to 29 MB, from 450 MB of downloads.
#
#     bench/sglang_bundle.sh FOLDER [0.5.16 | 0.5.23]        needs pip, unzip, xz
#
# For CPython 3.12 with torch 2.11, triton and transformers there already. Of sglang-kernel only what Hopper loads is
# kept. It is 0.4.5 for both: 0.4.10, which 0.5.23 asks for, wants symbols that torch has since 2.14, and what it has
# beyond 0.4.5 that 0.5.23 calls are two functions that SGLang does without. Extensions in Rust are left out, for torch
# 2.11 does not have their symbols either, and SGLang has the same in Python. bench/sglang_stubs stands in for what the
# benches do not use (flashinfer's sampling, xgrammar, IPython, datasets) and lets a newer transformers register model
# types again.
set -euo pipefail
out=$1 version=${2:-0.5.16}
wheels=$out/wheels site=$out/site
rm -rf "$site"
mkdir -p "$wheels" "$site"
platforms=(--only-binary=:all: --python-version 3.12 --implementation cp)
for p in manylinux_2_34 manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
  platforms+=(--platform "${p}_x86_64")
done
python3 -m pip download --quiet --no-deps "${platforms[@]}" -d "$wheels" \
  "sglang==$version" sglang-kernel==0.4.5 apache-tvm-ffi==0.1.11 annotated-types==0.8.0 asttokens==3.0.2 \
  compressed-tensors==0.20.0 dill==0.4.1 distro==1.9.0 executing==2.3.0 fastapi==0.165.0 gguf==0.19.0 loguru==0.7.3 \
  httpcore2==2.16.2 httpx2==2.16.2 jsonschema==4.25.1 jsonschema-specifications==2025.9.1 msgspec==0.22.0 \
  openai==2.6.1 openai-harmony==0.0.8 opentelemetry-api==1.45.2 orjson==3.13.0 partial-json-parser==0.2.1.1.post7 \
  pybase64==1.5.1 pydantic==2.14.3 pydantic-core==2.50.4 python-multipart==0.0.20 pyzmq==27.3.0 referencing==0.36.2 \
  rpds-py==0.27.1 setproctitle==1.3.8 sniffio==1.3.1 starlette==1.10.0 truststore==0.10.5 typing-inspection==0.4.5 \
  uvicorn==0.54.0
for wheel in "$wheels"/*.whl; do
  unneeded=()
  case $wheel in
    *sglang-*) [[ $wheel = *sglang-"$version"-* ]] || continue ;;
    *sglang_kernel*)
      unneeded=(-x 'sgl_kernel/flash_ops*' 'sgl_kernel/flashmla_ops*' 'sgl_kernel/infllm_ops*' 'sgl_kernel/sm100/*'
        'sgl_kernel/testing/*' 'triton_kernels/*') ;;
  esac
  unzip -q -o "$wheel" -d "$site" "${unneeded[@]}"
done
rm -rf "$site"/sglang/{multimodal_gen,test} "$site"/sglang/jit_kernel/{benchmark,tests} "$site"/sglang/kernels/jit/benchmark
find "$site/sglang" -name '*.so' -delete
tar cJf "$out/site.txz" -C "$site" .
ls -l "$out/site.txz"
