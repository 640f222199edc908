#!/usr/bin/env bash
# Compiles kernels/*.cu to machine code for several GPUs and prints registers and shared memory of each kernel. Fails if one
# spills registers or has local memory. Needs nvcc (scripts/cuda-home.sh) and no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT
failed=0
for arch in ${1:-sm_80 sm_90 sm_100}; do
  for source in kernels/*.cu; do
    nvcc -cubin -O3 -std=c++17 --fmad=false -Ikernels -arch="$arch" -Xptxas -v -o "$out/kernel.cubin" "$source" 2>"$out/log" \
      || { cat "$out/log" >&2; exit 1; }
    awk -v arch="$arch" '
      /Compiling entry function/ { split($0, part, "\x27"); name = part[2] }
      /bytes stack frame/        { frame = $0 }
      /Used [0-9]+ registers/    {
        registers = $0; sub(/.*Used /, "", registers); sub(/ registers.*/, "", registers)
        shared = "0"; if (match($0, /[0-9]+ bytes smem/)) shared = substr($0, RSTART, RLENGTH - 11)
        bad = frame !~ / 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads/
        printf "%-7s %-28s %3d registers %6d bytes shared%s\n", arch, name, registers, shared, bad ? "   LOCAL MEMORY:" frame : ""
        if (bad) failed = 1
      }
      END { exit failed }' "$out/log" || failed=1
  done
done
exit $failed
