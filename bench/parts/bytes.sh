# The bytes that kernels of three flows move, one of them of two steps, by Nsight Compute beside the interpreter's count.
seconds=240
stage() {
  rm -rf "$GPU/bytes"
  mkdir -p "$GPU/bytes"
  artifact quest bytes/quest
  artifact block_topk bytes/block_topk
  artifact examples/quest_then_mass.py bytes/quest_then_mass
}
run() {
  python3 bench/gpu_bytes.py "$GPU"/bytes/*.vxa --seconds $((LIMIT * 3 / 10)) --commit "$COMMIT" --out "$OUT/bytes.json"
}
