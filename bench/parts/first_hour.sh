# What a new user tries first: vortex.decode on tensors of a GPU, the decode loop of docs/python.md, vortex trace.
seconds=120
stage() {
  rm -rf "$GPU/first_hour"
  mkdir -p "$GPU/first_hour"
  # from a folder outside the project, whose tuning databases are not there either
  (cd "$GPU/first_hour" && PYTHONPATH=$PYTHONPATH:$PYTHONPATH/bench "$PYTHON" "$GPU/../bench/stage_first_hour.py" --out .)
}
run() {
  OMP_NUM_THREADS=4 XDG_CACHE_HOME=$GPU/first_hour/cache HF_HUB_OFFLINE=1 \
    python3 bench/gpu_first_hour.py --files "$GPU/first_hour" --commit "$COMMIT" --out "$OUT/first_hour.json"
}
