#!/usr/bin/env bash
# Has programs that we did not write read our files: llama.cpp's llama-perplexity and Python's gguf package.
#
# usage: scripts/cross-check.sh LLAMA_CPP PYTHON EVALUATION_TEXT
#   LLAMA_CPP        a checkout of llama.cpp with llama-perplexity built in build/bin
#   PYTHON           an interpreter with the gguf package
#   EVALUATION_TEXT  text to measure perplexity on
# Every level is written from tests/data/models/tiny-llama. Without an imatrix where that is possible.
set -euo pipefail
llama=$(realpath "$1") python=$2 text=$(realpath "$3")
root=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export LD_LIBRARY_PATH="$llama/build/bin:${LD_LIBRARY_PATH:-}"
cargo build --release --locked --manifest-path "$root/Cargo.toml" --quiet
ours=$(cargo metadata --manifest-path "$root/Cargo.toml" --format-version 1 --no-deps |
  "$python" -c 'import json,sys; print(json.load(sys.stdin)["target_directory"])')/release/llm-quantize

for level in BF16 F16 F32 Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 IQ4_NL IQ4_XS Q3_K_L Q3_K_M Q3_K_S Q2_K Q2_K_S TQ1_0 TQ2_0; do
  imatrix=()
  [ "$level" != Q2_K_S ] || imatrix=(--imatrix "$root/tests/data/golden/tiny-llama/imatrix.gguf")
  "$ours" --verbosity quiet quantize "$root/tests/data/models/tiny-llama" gguf -q "$level" -o "$work" "${imatrix[@]}"
  file=$work/tiny-llama-$level.gguf
  tensors=$("$python" - "$file" <<'PY'
import sys, numpy
from gguf import GGUFReader
from gguf.quants import dequantize
reader = GGUFReader(sys.argv[1])
for tensor in reader.tensors:
    weights = dequantize(tensor.data, tensor.tensor_type)
    assert weights.size == tensor.n_elements and numpy.isfinite(weights).all(), tensor.name
print(len(reader.tensors))
PY
  )
  perplexity=$("$llama/build/bin/llama-perplexity" -m "$file" -f "$text" -c 512 2>&1 | sed -n 's/.*Final estimate: PPL = \([0-9.]*\).*/\1/p')
  printf '%-8s gguf-py read %s tensors, llama-perplexity %s\n' "$level" "$tensors" "${perplexity:-FAILED}"
done
