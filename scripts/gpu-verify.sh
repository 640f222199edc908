#!/usr/bin/env bash
# On a machine with an NVIDIA GPU: builds, runs all tests that compare the GPU with the CPU, the benchmark, and Q4_K_M, GPTQ and
# AWQ on layers of the shapes of Llama 3.1 8B and 70B, and writes a log for docs/gpu/. Needs a Rust toolchain, g++, and nvcc (a CUDA toolkit 13.0, or Python to fetch it with scripts/cuda-home.sh).
#
#   scripts/gpu-verify.sh [DEVICE]        cuda:0 if no device is named; several as cuda:0,cuda:1
set -euo pipefail
cd "$(dirname "$0")/.."
device=${1:-cuda:0}
target=${CARGO_TARGET_DIR:-target}

command -v nvidia-smi >/dev/null || { echo "$0: there is no nvidia-smi: no NVIDIA driver on this machine" >&2; exit 5; }
name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1 | tr -c 'A-Za-z0-9\n' - | sed 's/-*$//')
mkdir -p docs/gpu
log=docs/gpu/$name.log
exec > >(tee "$log") 2>&1

echo "== machine"
git log -1 --format='commit %H'
nvidia-smi --query-gpu=name,driver_version,compute_cap,memory.total,power.limit --format=csv
lscpu | grep -E 'Model name|^CPU\(s\)'
if ! command -v nvcc >/dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
  eval "$(scripts/cuda-home.sh "$target/cuda")"
fi

echo "== tests on the GPU"
started=$SECONDS
REQUIRE_GPU=1 cargo test --locked --features cuda cuda
echo "tests: $((SECONDS - started)) s, builds included"

if command -v compute-sanitizer >/dev/null; then
  for tool in memcheck racecheck; do
    echo "== compute-sanitizer $tool"
    binary=$(cargo test --locked --features cuda --lib --no-run --message-format=json 2>/dev/null |
      sed -n 's/.*"executable":"\([^"]*llm_quantize-[^"]*\)".*/\1/p' | tail -1)
    REQUIRE_GPU=1 compute-sanitizer --tool "$tool" --error-exitcode 1 "$binary" cuda::tests::gptq cuda::tests::awq \
      cuda::tests::products cuda::tests::staging decoder::cuda_tests
  done
else
  echo "no compute-sanitizer: memory and races were not checked on the GPU"
fi

echo "== benchmark"
memory=$(mktemp)
nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 200 >"$memory" &
sampler=$!
trap 'kill $sampler 2>/dev/null || true; rm -f "$memory"' EXIT
if command -v nsys >/dev/null; then
  cargo bench --locked --features cuda --bench gpu --no-run
  binary=$(cargo bench --locked --features cuda --bench gpu --no-run --message-format=json 2>/dev/null |
    sed -n 's/.*"executable":"\([^"]*gpu-[^"]*\)".*/\1/p' | tail -1)
  nsys profile --stats=true --force-overwrite true -o "$target/gpu-verify" "$binary" --device "$device"
else
  echo "no nsys: times are those of operations, not of kernels"
  cargo bench --locked --features cuda --bench gpu -- --device "$device"
fi

echo "== models: what two layers more take, and so all"
cargo build --locked --release --features cuda
scripts/gpu-stack.sh "$device" "$target/release/llm-quantize"
echo "GPU memory: $(sort -n "$memory" | tail -1) MiB at most"
echo "== done: $log"
