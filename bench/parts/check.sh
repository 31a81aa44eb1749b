# attend in many shapes and configurations against float64.
seconds=150
stage() { "$PYTHON" bench/stage_gpu.py --out "$GPU"; }
run() { python3 bench/gpu_check.py --kernels "$GPU" --out "$OUT/attend_check.json"; }
