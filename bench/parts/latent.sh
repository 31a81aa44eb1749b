# attend over latent rows (MLA), and whole steps of an artifact of one.
seconds=180
stage() {
  "$PYTHON" bench/stage_latent.py --out "$GPU/latent"
  artifact latent_topk latent_topk --heads 20 --latent 512+64
}
run() {
  python3 bench/gpu_latent.py --kernels "$GPU/latent" --artifact "$GPU/latent_topk.vxa" \
    --seconds $((LIMIT * 8 / 10)) --out "$OUT/latent.json"
}
