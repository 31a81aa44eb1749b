# Decoder on a GPU: steps of several flows against torch, graphs, streams, bad input, host time. Takes under 60 s.
seconds=120
FLOWS="quest block_topk gqa_block lserve masked_quest venergy_gated"
stage() {
  for flow in $FLOWS; do artifact "$flow" "$flow"; done
  artifact latent_topk latent_topk --latent 512+64 --heads 20
}
run() {
  local made=()
  for flow in $FLOWS latent_topk; do made+=("$GPU/$flow.vxa"); done
  python3 bench/gpu_decoder.py "${made[@]}" --commit "$COMMIT" --out "$OUT/decoder.json"
}
