# Our best staged attend and Triton's, Triton's select and top-k; the kernels are those of `check`.
seconds=200
run() {
  python3 -m baselines --kernels "$GPU" --commit "$COMMIT" --seconds $((LIMIT * 8 / 10)) --out "$OUT/baselines.json" \
    --only ${TRITON:-attend select topk}
}
