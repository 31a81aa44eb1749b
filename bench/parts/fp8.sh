# attend over K and V in fp8: many shapes and configurations against float64, then timed beside bf16.
seconds=200
stage() { "$PYTHON" bench/stage_gpu.py --kv fp8 --out "$GPU/fp8"; }
run() {
  python3 bench/gpu_check.py --kernels "$GPU/fp8" --out "$OUT/attend_fp8_check.json"
  python3 bench/gpu_kernels.py --kernels "$GPU/fp8" --out "$OUT/attend_fp8_kernels.json" \
    --seconds $((LIMIT * 5 / 10)) --pool 16 --only 8 32 64 128
}
