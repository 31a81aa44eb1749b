# What asking summaries into L2 ahead brings: layers of two flows with and without, in one run.
seconds=150
FLOWS="quest block_topk"
VARIANTS="none:own=0,next=0 own:own=2,next=0 two:own=2,next=2"
stage() {
  local flow variant page=$GPU/ahead.page
  for flow in $FLOWS; do
    artifact "$flow" "$flow"
    for variant in $VARIANTS; do
      "$PYTHON" -m vortex compile "$flow" --target sm_90a --to page --no-dump -o "$page"
      sed -i "/@select/s/schedule = {/schedule = {$(sed 's/=/ = /g; s/,/, /g' <<< "${variant#*:}"), /" "$page"
      "$PYTHON" -m vortex compile --from page "$page" --no-dump -o "$GPU/${flow}_${variant%%:*}.vxa"
    done
  done
  rm "$page"
}
run() {
  local made=() variant flow
  for variant in "" _none _own _two; do
    for flow in $FLOWS; do made+=("$GPU/$flow$variant.vxa"); done
  done
  python3 bench/gpu_layer.py "${made[@]}" --commit "$COMMIT" --out "$OUT/select_ahead.json" \
    --shapes 1x32763,8x32763,32x32763,128x8187
}
