# Top-k alone in random rows against a sort in torch, then beside FlashInfer and torch: bench/gpu_topk_check.py,
# bench/baselines/protocol.py.
seconds=120
stage() { "$PYTHON" bench/stage_peers.py --out "$GPU/ready" --only ready; }
run() {
  python3 bench/gpu_topk_check.py --kernels "$GPU/ready" --out "$OUT/topk_check.json" &&
    python3 -m baselines.protocol --peers "$GPU/ready" --only topk --no-triton --out "$OUT/peers_topk.json" \
      --minutes "$(python3 -c "print(max(20, $LIMIT - 60) / 60)")"
}
