#!/usr/bin/env bash
# Compares precisions that are chosen by what they lose with one precision for all, at the same file size: GPTQ with 3 bits in groups
# of 128 (3.148 bits per weight), 64 rows of 256 tokens, KL divergence from the original in windows of 256.
#
# usage: scripts/measure-budget.sh MODEL CALIBRATION_TEXT EVALUATION_TEXT [PROGRAM]
set -euo pipefail
[ $# -ge 3 ] || { sed -n '2,5s/^# \{0,1\}//p' "$0" >&2; exit 2; }
model=$1 calibration=$2 evaluation=$3
program=${4:-$(dirname "$0")/../target/release/llm-quantize}
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

measure() {
  local name=$1
  shift
  "$program" --format json quantize "$model" gptq -o "$out" -n "$name" --calibration-data "$calibration" \
    --calibration-samples 64 --seq-len 256 --evaluate --data "$evaluation" --ctx 256 "$@" >"$out/$name.json"
  python3 - "$name" "$out/$name.json" <<'PY'
import json, sys
found = json.load(open(sys.argv[2]))
print(f"{sys.argv[1]:<10} {found['file_size']:>12} bytes   KL divergence {found['evaluation']['kl_divergence']:.6f}")
PY
}

measure uniform -q 3bit
measure measured --target-bpw 3.148
measure estimated --target-bpw 3.148 --estimate
"$program" analyze profile "$model" --target-bpw 3.148 -o "$out/profile.json" --calibration-data "$calibration" \
  --calibration-samples 64 --seq-len 256 | grep correlation
