# Candidates of all kernels at the benchmark shapes, measured: `vortex db merge` takes the results in. Of select's
# knobs those stay at their defaults that rows of these shapes do not feel.
seconds=200
stage() {
  "$PYTHON" -m vortex tune quest block_topk --target sm_90a --shapes bench --kinds plan,append,select,attend \
    --candidates "${CANDIDATES:-72}" --where chip_words=8192 --where in_flight=0 --bundle "$GPU/tune.vxb"
}
run() {
  python3 -m vortex.tune.measure "$GPU/tune.vxb" -o "$OUT/tune_results.jsonl" \
    --minutes "$(python3 -c "print(max(20, $LIMIT - 15) / 60)")"
}
