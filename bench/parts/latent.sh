# attend over latent rows (MLA) in float64, then timed; one artifact's Decoder.
seconds=180
stage() {
  "$PYTHON" bench/stage_latent.py --out "$GPU/latent"
  artifact latent_topk latent_topk --latent 512+64 --heads 20
}
run() {
  python3 bench/gpu_latent.py --kernels "$GPU/latent" --artifact "$GPU/latent_topk.vxa" --out "$OUT/latent.json" \
    --seconds $((LIMIT - 20))
}
