# One layer of flows of two steps, 8 pages kept beside the reserved ones: bounds of all pages, then the mass of the keys
# of 64 pages (or of 128 blocks). VARIANTS are knobs of select as in select.sh, measured beside the default.
seconds=150
VARIANTS=${VARIANTS:-}
steps() {
  case $1 in
    quest_then_mass | quest_then_exact) echo "examples/$1.py" ;;
    pyramid) echo "examples/$1.py --page-size 64 --block-size 16" ;;
    pyramid_fp8) echo "bench/language_flows.py:$1 --page-size 64 --block-size 16" ;;
    *) echo "bench/language_flows.py:$1" ;;
  esac
}
STEPS=${STEPS:-"quest_then_mass quest_then_mass_int4 quest_then_mass_fp8 quest_then_exact pyramid pyramid_fp8"}
stage() {
  local flow variant
  rm -rf "$GPU/steps"
  mkdir -p "$GPU/steps"
  for flow in $STEPS; do
    # shellcheck disable=SC2046
    set -- $(steps "$flow")
    artifact "$1" "steps/$flow" "${@:2}"
    for variant in $VARIANTS; do
      artifact "$1" "steps/$flow.${variant%%:*}" "${@:2}" --passes "$("$PYTHON" bench/scheduled.py select "${variant#*:}")"
    done
  done
}
run() {
  python3 bench/gpu_layer.py "$GPU"/steps/*.vxa --budget 8 --between 100 --commit "$COMMIT" --out "$OUT/steps.json" \
    --shapes "${SHAPES:-1x32763,8x32763,32x32763,8x131067}"
}
