# Candidates of plan, select and attend at the benchmark shapes, measured: `vortex db merge` takes the results in.
seconds=200
stage() {
  "$PYTHON" -m vortex tune quest block_topk --target sm_90a --shapes bench --kinds plan,select,attend \
    --candidates "${CANDIDATES:-16}" --bundle "$GPU/tune.vxb"
}
run() {
  python3 -m vortex.tune.measure "$GPU/tune.vxb" -o "$OUT/tune_results.jsonl" \
    --minutes "$(python3 -c "print(max(20, $LIMIT - 20) / 60)")"
}
