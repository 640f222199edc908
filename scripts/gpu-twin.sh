#!/usr/bin/env bash
# Builds the GPU twin, a libcuda.so.1 that runs kernels on the processor, and prints what to export so that CUDA programs
# use it. It is a tool for tests: it is no GPU, and says nothing of speed.
#
#   eval "$(scripts/gpu-twin.sh)"
#   REQUIRE_GPU=1 cargo test --features cuda cuda
set -euo pipefail
cd "$(dirname "$0")/.."

# Optimised: it runs every instruction of every thread.
cargo build --locked --release --package gpu-twin-driver >&2
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/gpu-twin"
cp -f "$target/release/libcuda.so" "$target/gpu-twin/libcuda.so.1"
echo "export LD_LIBRARY_PATH='$(cd "$target/gpu-twin" && pwd)'\"\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}\""
