# Decoder on a GPU: steps of several flows against torch, graphs, streams, bad input, host time. Takes under 60 s.
# FEW=1 stages two flows and latent attention.
seconds=120
FLOWS="quest block_topk gqa_block lserve masked_quest venergy_gated"
stage() {
  local flow
  for flow in $FLOWS latent_topk; do rm -rf "$GPU/$flow.vxa"; done
  for flow in $([ -n "${FEW:-}" ] && echo quest block_topk || echo "$FLOWS"); do artifact "$flow" "$flow"; done
  artifact latent_topk latent_topk --latent 512+64 --heads 20
}
run() {
  local made=() flow
  for flow in $FLOWS latent_topk; do [ ! -d "$GPU/$flow.vxa" ] || made+=("$GPU/$flow.vxa"); done
  python3 bench/gpu_decoder.py "${made[@]}" --commit "$COMMIT" --out "$OUT/decoder.json"
}
