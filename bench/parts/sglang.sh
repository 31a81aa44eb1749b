# SGLang 0.5.16 decoding inside its model runner, dense against sparse. `stage` needs bench/sglang_bundle.sh's result
# in $SGLANG_BUNDLE (default ../../stage/sglang): site.txz, and jitcache.txz where its JIT kernels were built ahead.
# TP=1 runs engines on one rank and on two instead, where there are two GPUs.
seconds=240

stage() {
  local from=${SGLANG_BUNDLE:-../../stage/sglang}
  [ -f "$from/site.txz" ] || { echo "no $from/site.txz: make it with bench/sglang_bundle.sh $from"; return 0; }
  cp -u "$from"/*.txz "$GPU/"
  artifact quest sglang_1.7b --heads 16/8 --head-dim 128 --page-size 16 --dtype bf16 --no-dump
  artifact quest sglang_8b --heads 32/8 --head-dim 128 --page-size 16 --dtype bf16 --no-dump
  mkdir -p "$GPU/src/tests/engine"
}

run() {
  [ -f "$GPU/site.txz" ] || { echo "SGLang was not staged"; return 1; }
  local site=/tmp/sglang-site
  if [ ! -d $site ]; then
    mkdir -p $site
    python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$GPU/site.txz" $site
    [ ! -f "$GPU/jitcache.txz" ] || python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall("/tmp")' "$GPU/jitcache.txz"
    mkdir -p $site/vortex-0.dist-info
    printf 'Metadata-Version: 2.1\nName: vortex\nVersion: 0\n' > $site/vortex-0.dist-info/METADATA
    printf '[sglang.srt.plugins]\nvortex = vortex.runtime.sglang.plugin:activate\n' > $site/vortex-0.dist-info/entry_points.txt
  fi
  # SGLang's pins of tvm-ffi come with the bundle, before what the other parts use
  export PYTHONPATH=$GPU/src:$GPU/src/bench/sglang_stubs:$site
  export TVM_FFI_CACHE_DIR=/tmp/jitcache SGLANG_IS_FLASHINFER_AVAILABLE=false HF_HUB_OFFLINE=1
  export CUDA_HOME=${CUDA_HOME:-/usr/local/cuda} NCCL_NVLS_ENABLE=0
  if [ -n "${TP:-}" ]; then  # on two GPUs: one rank and two
    VORTEX_CONFIG="{\"flow\": \"$GPU/sglang_1.7b.vxa\", \"budget\": {\"pages\": 27}}" \
      python3 bench/sglang_tp.py --out "$OUT/sglang_tp.json"
    return
  fi
  for model in ${MODELS:-1.7b}; do
    VORTEX_CONFIG="{\"flow\": \"$GPU/sglang_$model.vxa\", \"budget\": {\"pages\": 27}}" \
      python3 bench/sglang_decode.py --model "$model" --shapes "${SHAPES:-16x32768,1x32768}" --out "$OUT/sglang_$model.json"
  done
}
