#!/usr/bin/env bash
# Damages outputs of each kind (GGUF, GPTQ, AWQ, hf) at random, 10,000 times each: `info --verify` finds it, or what is read is
# proven to be a whole model still. tests/it/corruption.rs does some of it with every `cargo test`.
#
#   scripts/corrupt.sh [TIMES]
set -euo pipefail
cd "$(dirname "$0")/.."
CORRUPTIONS=${1:-10000} cargo test --locked --test it much_damage -- --ignored --nocapture
