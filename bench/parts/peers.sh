# Default kernels against FlashInfer, Triton and torch: bench/baselines/protocol.py.
seconds=300
stage() { "$PYTHON" bench/stage_peers.py --out "$GPU/peers"; }
run() {
  python3 -m baselines.protocol --peers "$GPU/peers" --out "$OUT/peers.json" \
    --minutes "$(python3 -c "print(($LIMIT - 30) / 60)")" ${PEERS:-}
}
