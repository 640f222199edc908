#!/usr/bin/env bash
# Compares this program with llama.cpp on one machine in one run: the bytes, the time and the memory.
#
# usage: scripts/compare-llama-cpp.sh LLAMA_CPP PYTHON MODEL [LEVEL ...]
#   LLAMA_CPP  a checkout of llama.cpp with llama-quantize built in build/bin
#   PYTHON     an interpreter with torch, transformers and the requirements of convert_hf_to_gguf.py
#   MODEL      a directory with a Hugging Face model
#   LEVEL      default: Q4_K_M Q5_K_M Q3_K_M Q2_K Q6_K Q8_0 BF16
# Environment: THREADS (2), RUNS (3; the fastest of them counts), WORK (a new temporary directory).
set -euo pipefail
llama=$(realpath "$1") python=$2 model=$(realpath "$3")
shift 3
levels=("$@")
[ ${#levels[@]} -gt 0 ] || levels=(Q4_K_M Q5_K_M Q3_K_M Q2_K Q6_K Q8_0 BF16)
threads=${THREADS:-2} runs=${RUNS:-3}
root=$(cd "$(dirname "$0")/.." && pwd)
work=${WORK:-$(mktemp -d)}
[ -n "${WORK:-}" ] || trap 'rm -rf "$work"' EXIT
mkdir -p "$work"
export LD_LIBRARY_PATH="$llama/build/bin:${LD_LIBRARY_PATH:-}"

cargo build --release --locked --manifest-path "$root/Cargo.toml" --quiet
ours=$(cargo metadata --manifest-path "$root/Cargo.toml" --format-version 1 --no-deps |
  "$python" -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')/release/llm-quantize

# Fastest of several runs, in seconds: best COMMAND...
best() {
  local fastest= i t
  for ((i = 0; i < runs; i++)); do
    /usr/bin/env time -f %e "$@" >"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
    t=$(tail -n 1 "$work/log")
    fastest=$(awk -v a="${fastest:-$t}" -v b="$t" 'BEGIN { print (a < b) ? a : b }')
  done
  echo "$fastest"
}
ratio() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.2f", a / b }'; }

name=$(basename "$model")
echo "model $name, $(du -cb "$model"/*.safetensors | tail -n 1 | cut -f 1) bytes; $threads threads; fastest of $runs runs"
copy=$(best bash -c "cat '$model'/*.safetensors > '$work/copy' && sync '$work/copy'")
rm -f "$work/copy"
echo "copying the weights and flushing them: $copy s"
convert=$(best "$python" "$llama/convert_hf_to_gguf.py" "$model" --outtype bf16 --outfile "$work/bf16.gguf")
echo "convert_hf_to_gguf.py: $convert s"
printf '%-8s %10s %10s %8s %10s %8s %8s  %s\n' level llama.cpp ours ratio encoding ratio hf2gguf bytes
for level in "${levels[@]}"; do
  theirs=$(best "$llama/build/bin/llama-quantize" "$work/bf16.gguf" "$work/theirs.gguf" "$level" "$threads")
  mine=$(best "$ours" --threads "$threads" quantize "$model" gguf -q "$level" -o "$work" -n ours --force)
  encode=$(for ((i = 0; i < runs; i++)); do
    "$ours" --format json --threads "$threads" quantize "$model" gguf -q "$level" -o "$work" -n ours --force 2>/dev/null |
      "$python" -c 'import json,sys; print(json.load(sys.stdin)["encode_seconds"])'
  done | sort -g | head -n 1)
  if cmp -s "$work/theirs.gguf" "$work/ours.gguf"; then same=identical; else same=DIFFERENT; fi
  total=$(awk -v a="$convert" -v b="$theirs" 'BEGIN { print a + b }')
  printf '%-8s %9.2fs %9.2fs %7sx %9.2fs %7sx %7sx  %s\n' "$level" "$theirs" "$mine" "$(ratio "$theirs" "$mine")" \
    "$encode" "$(ratio "$theirs" "$encode")" "$(ratio "$total" "$mine")" "$same"
done
echo "ours is the whole command: it flushes the file to the disk, opens it again and compares it with the source;"
echo "encoding is what llama-quantize does: reading, encoding and writing"
