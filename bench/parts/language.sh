# Selections, narrow fields, state, parameters, budgets of rows and blocks: vortex run judges each flow there.
seconds=120
stage() {
  rm -rf "$GPU/language"
  mkdir -p "$GPU/language"
  artifact bench/language_flows.py:share_union language/share_union
  local flow
  for flow in mass mass_lowrank hash_bits double_sparsity learned_query; do artifact "$flow" "language/$flow"; done
  for flow in running_avg_block_sparse query_ema quest_then_mass quest_then_exact twilight; do artifact "examples/$flow.py" "language/$flow"; done
  artifact quest language/quest_blocks --page-size 64 --block-size 16
  artifact mass language/mass_blocks --page-size 64 --block-size 16
  artifact examples/pyramid.py language/pyramid --page-size 64 --block-size 16
  artifact quest language/quest_table --budget-table
  artifact examples/quest_then_exact.py language/quest_then_exact_fp8 --kv-dtype fp8_e4m3
}
run() { python3 bench/gpu_language.py "$GPU"/language/*.vxa --commit "$COMMIT" --out "$OUT/language.json"; }
