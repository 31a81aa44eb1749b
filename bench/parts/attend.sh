# attend in many configurations, timed; the kernels are those of `check`.
seconds=180
run() {
  python3 bench/gpu_kernels.py --kernels "$GPU" --out "$OUT/attend_kernels.json" --seconds $((LIMIT * 8 / 10))
}
