# One layer of two flows, checked against torch, then timed; and one of them again with the same bits in any batch.
seconds=120
stage() {
  artifact quest quest
  artifact block_topk block_topk
}
run() {
  python3 bench/gpu_layer.py "$GPU/quest.vxa" "$GPU/block_topk.vxa" --between 100 --commit "$COMMIT" --out "$OUT/layer.json" &&
    python3 bench/gpu_layer.py "$GPU/quest.vxa" --deterministic --commit "$COMMIT" --out "$OUT/layer_deterministic.json"
}
