# select in variants, each as part of a layer of two flows and in one run: knobs as in `vortex db show`. `default` is
# what tuning chose; the others stand for all of its variants.
seconds=60
FLOWS=${FLOWS:-"quest block_topk"}
VARIANTS=${VARIANTS:-"small:threads=128,residents=4"}
stage() {
  local flow variant page=$GPU/select.page
  rm -rf "$GPU"/select_*.vxa
  for flow in $FLOWS; do
    "$PYTHON" -m vortex compile "$flow" --target sm_90a --to page --no-dump -o "$page"
    for variant in default $VARIANTS; do
      [ "$variant" = default ] && cp "$page" "$page.edited" ||
        "$PYTHON" bench/with_knobs.py "$page" select "${variant#*:}" > "$page.edited"
      "$PYTHON" -m vortex compile --from page "$page.edited" --no-dump -o "$GPU/select_${variant%%:*}_$flow.vxa"
    done
  done
  rm "$page" "$page.edited"
}
run() {
  python3 bench/gpu_layer.py "$GPU"/select_*.vxa --commit "$COMMIT" --out "$OUT/select.json" \
    --shapes "${SHAPES:-1x32763,8x32763,32x32763,64x32763,128x8187}"
}
