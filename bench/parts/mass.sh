# One layer of flows that estimate the mass of pages by all of their keys, in fp8 and in int4: select's contraction is
# bound by the bytes that it reads, and by converting them.
seconds=150
stage() {
  artifact bench/language_flows.py:mass_fp8 mass_fp8
  artifact mass mass_int4
}
run() {
  # and what else was staged under such a name, with other knobs for example
  python3 bench/gpu_layer.py "$GPU"/mass_*.vxa --commit "$COMMIT" --out "$OUT/mass.json" \
    --shapes "${SHAPES:-1x32763,8x32763,32x32763}"
}
