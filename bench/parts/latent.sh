# attend over latent rows (MLA), and whole steps of an artifact of one. BEFORE=FOLDER stages what another commit made (its
# kernels.json, library and latent_topk.vxa) to be measured beside it.
seconds=180
stage() {
  "$PYTHON" bench/stage_latent.py --out "$GPU/latent"
  artifact latent_topk latent_topk --heads 20 --latent 512+64
  artifact latent_topk latent_topk_fp8 --heads 20 --latent 512+64 --kv-dtype fp8_e4m3
  rm -rf "$GPU/latent_before"
  [ -z "${BEFORE:-}" ] || cp -r "$BEFORE" "$GPU/latent_before"
}
run() {
  local before=()
  [ ! -d "$GPU/latent_before" ] || before=(--before "$GPU/latent_before")
  python3 bench/gpu_latent.py --kernels "$GPU/latent" --artifact "$GPU/latent_topk.vxa" "${before[@]}" \
    --fp8 "$GPU/latent_topk_fp8.vxa" --seconds $((LIMIT * 8 / 10)) --out "$OUT/latent.json"
}
