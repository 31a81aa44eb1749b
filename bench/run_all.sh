#!/usr/bin/env bash
# On a GPU machine: the parts that bench/stage_all.sh staged, each under a limit of its own, results into $OUT.
#
#     bash .gpu/run_all.sh [PART[=SECONDS] ...]
#
# SECONDS_LEFT (default 570) bounds the whole run: a part gets what is left at most, and none begins with less than 20.
# Every part writes its JSON as it goes, so a run that is cut off loses one row; what all parts say is in $OUT/log.txt.
# More than six results are moved into $OUT/more.tar, so that few files have to be brought back.
set -u
export GPU=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export OUT=${OUT:-$GPU/out} COMMIT=$(cat "$GPU/commit") PYTHONUNBUFFERED=1
end=$((SECONDS + ${SECONDS_LEFT:-570}))
mkdir -p "$OUT"
site=$(mktemp -d)
python3 -c 'import tvm_ffi' 2> /dev/null || python3 -m zipfile -e "$GPU"/wheels/apache_tvm_ffi-*.whl "$site"
# unpack ARCHIVE FOLDER: for parts as well, on machines that may lack xz
unpack() { python3 -c 'import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])' "$1" "$2"; }
export -f unpack
[ ! -f "$GPU/flashinfer.txz" ] || unpack "$GPU/flashinfer.txz" "$site"
export PYTHONPATH=$site:$GPU/src:$GPU/src/bench
cd "$GPU/src"
nvidia-smi --query-gpu=name,driver_version,clocks.max.sm --format=csv,noheader 2> /dev/null | tee -a "$OUT/log.txt"

parts=("$@")
[ ${#parts[@]} -gt 0 ] || parts=($(cd bench/parts && ls ./*.sh | xargs -n 1 basename -s .sh))
failed=0
for one in "${parts[@]}"; do
  part=${one%%=*}
  file=bench/parts/$part.sh
  [ -f "$file" ] || { echo "$part: there is no $file" | tee -a "$OUT/log.txt"; failed=1; continue; }
  seconds=$(source "$file" && echo "$seconds")
  [ "$one" = "$part" ] || seconds=${one#*=}
  left=$((end - SECONDS))
  if [ "$left" -lt 20 ]; then
    echo "$part: skipped, $left s left" | tee -a "$OUT/log.txt"
    continue
  fi
  [ "$seconds" -lt "$left" ] || seconds=$left
  echo "== $part, at most $seconds s" | tee -a "$OUT/log.txt"
  began=$SECONDS
  LIMIT=$seconds timeout -k 5 "$seconds" bash -c "source $file; run" 2>&1 | tee -a "$OUT/log.txt"
  code=${PIPESTATUS[0]}
  [ "$code" -eq 0 ] || failed=1
  echo "== $part: exit $code after $((SECONDS - began)) s" | tee -a "$OUT/log.txt"
  while [ "$(ls "$OUT"/*.json 2> /dev/null | wc -l)" -gt 5 ]; do
    oldest=$(ls -t "$OUT"/*.json | tail -n 1)
    tar -rf "$OUT/more.tar" -C "$OUT" "$(basename "$oldest")" && rm "$oldest"
  done
done
exit $failed
