# One layer of flows that estimate the mass of pages beside one of AMASS 0.1.1 and LOCKS 0.1.4, at equally many pages
# kept. MASS_PEERS names a folder with their wheels, torch/include of the GPU machine's torch and python/ with the
# headers of its Python (bench/stage_mass_peers.py says how to get them); without it ours are measured alone.
seconds=240
stage() {
  artifact mass mass_int4
  artifact bench/language_flows.py:quest_then_mass_fp8 bounds_then_mass@11
  artifact bench/language_flows.py:bounds_then_mass_408 bounds_then_mass@105
  artifact bench/language_flows.py:bounds_then_mass_1636 bounds_then_mass@412
  [ -z "${MASS_PEERS:-}" ] || "$PYTHON" bench/stage_mass_peers.py --wheels "$MASS_PEERS" \
    --torch "$MASS_PEERS/torch/include" --python "$MASS_PEERS/python" --out "$GPU/mass_peers"
}
run() {
  local theirs=(--wheels "$GPU/mass_peers" --commit "$COMMIT")
  [ -d "$GPU/mass_peers" ] && theirs+=(--peers amass_clse,amass_quad,amass_r8,locks)
  python3 bench/gpu_mass_peers.py "$GPU/mass_int4.vxa" "$GPU"/bounds_then_mass@*.vxa "${theirs[@]}" \
    --out "$OUT/mass_peers.json"
  [ ! -d "$GPU/mass_peers" ] || RKI4_MMA=1 RKI4_MMA_AOS=1 RKI4_MMA_ALLG=1 python3 bench/gpu_mass_peers.py \
    --wheels "$GPU/mass_peers" --peers locks --commit "$COMMIT" --out "$OUT/mass_peers_locks.json"
}
