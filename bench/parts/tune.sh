# Candidates of all kernels at the benchmark shapes, measured: `vortex db merge` takes the results in. Of select's
# knobs those stay at their defaults that rows of these shapes do not feel. The bundle grows in the cache, where the
# next stage goes on with it, and travels packed: every library in it has the CUDA runtime once.
seconds=200
stage() {
  local made="${XDG_CACHE_HOME:-$HOME/.cache}/vortex/stage/tune.vxb"
  "$PYTHON" -m vortex tune quest block_topk --target sm_90a --shapes bench --kinds plan,append,select,attend \
    --candidates "${CANDIDATES:-64}" --where chip_words=8192 --where in_flight=0 --where residents=1,2,3,4,6,8 \
    --bundle "$made"
  tar -C "$(dirname "$made")" -cJf "$GPU/tune.vxb.tar.xz" tune.vxb
}
run() {
  local end=$((SECONDS + LIMIT - 10)) at
  at=$(mktemp -d)
  python3 -c "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter='data')" \
    "$GPU/tune.vxb.tar.xz" "$at"
  python3 -m vortex.tune.measure "$at/tune.vxb" -o "$OUT/tune_results.jsonl" \
    --minutes "$(python3 -c "print(max(20, $end - $SECONDS) / 60)")"
}
