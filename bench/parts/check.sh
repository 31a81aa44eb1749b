# attend in many shapes and configurations against float64; FEW=1 stages a third of them.
seconds=150
stage() { "$PYTHON" bench/stage_gpu.py ${FEW:+--few} --out "$GPU"; }
run() { python3 bench/gpu_check.py --kernels "$GPU" --out "$OUT/attend_check.json"; }
