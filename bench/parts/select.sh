# select in variants, each as part of a layer of two flows and in one run: knobs as in `vortex db show`. `default` is
# what tuning chose; of the others the knobs that are not given are chosen around those that are.
seconds=60
FLOWS=${FLOWS:-"quest block_topk"}
VARIANTS=${VARIANTS:-"small:threads=128,residents=4"}
stage() {
  local flow variant
  rm -rf "$GPU"/select_*.vxa
  for flow in $FLOWS; do
    artifact "$flow" "select_default_$flow"
    for variant in $VARIANTS; do
      artifact "$flow" "select_${variant%%:*}_$flow" --passes "$("$PYTHON" bench/scheduled.py select "${variant#*:}")"
    done
  done
}
run() {
  python3 bench/gpu_layer.py "$GPU"/select_*.vxa --commit "$COMMIT" --out "$OUT/select.json" \
    --shapes "${SHAPES:-1x32763,8x32763,32x32763,64x32763,128x8187}"
}
