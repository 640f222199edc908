#!/usr/bin/env bash
# Quantizes models of random weights with the layers of Llama 3.1 8B and 70B, and says what the whole models would take: a model
# of two layers and one of four, so that what does not depend on their number falls out.
#
#   scripts/gpu-stack.sh DEVICE PROGRAM [SCALE] [SAMPLES] [LENGTH]
#
# SCALE divides all sizes (1), SAMPLES rows of LENGTH tokens are the calibration (64 of 2048). Needs 60 GB of disk at scale 1.
set -euo pipefail
device=$1 program=$(realpath "$2") scale=${3:-1} samples=${4:-64} length=${5:-2048}
cd "$(dirname "$0")/.."
dir=$(mktemp -d "${TMPDIR:-/tmp}/gpu-stack.XXXXXX")
trap 'rm -rf "$dir"' EXIT
data=$PWD/tests/data/text/calibration.txt

# seconds MODEL FORMAT LEVEL: how long the command takes.
seconds() {
  local options=() started=$EPOCHREALTIME
  [ "$2" = gguf ] || options=(--calibration-data "$data" --calibration-samples "$samples" --seq-len "$length")
  "$program" quantize "$1" "$2" -q "$3" -o "$dir" -n out --force --device "$device" --no-checkpoints \
    --verbosity quiet "${options[@]}" >&2
  awk -v a="$started" -v b="$EPOCHREALTIME" 'BEGIN { print b - a }'
}

echo "$samples rows of $length tokens, sizes divided by $scale; seconds of whole commands"
printf '%-5s %-16s %9s %9s %9s %9s\n' model to "2 layers" "4 layers" "a layer" all
for model in 8b:32 70b:80; do
  shape=${model%:*} layers=${model#*:}
  for n in 2 4; do
    cargo run --locked --quiet --release --example stack "$shape" "$n" "$scale" "$dir/$shape-$n"
  done
  for to in gguf:Q4_K_M gptq:4bit awq:4bit; do
    format=${to%:*} level=${to#*:}
    # The first run brings the files into the page cache.
    [ "$format" != gguf ] || seconds "$dir/$shape-4" "$format" "$level" >/dev/null
    two=$(seconds "$dir/$shape-2" "$format" "$level")
    four=$(seconds "$dir/$shape-4" "$format" "$level")
    awk -v shape="$shape" -v to="$format $level" -v two="$two" -v four="$four" -v layers="$layers" 'BEGIN {
      layer = (four - two) / 2
      printf "%-5s %-16s %9.2f %9.2f %9.3f %9.0f\n", shape, to, two, four, layer, two + (layers - 2) * layer
    }'
  done
  rm -rf "$dir/$shape-2" "$dir/$shape-4"
done
