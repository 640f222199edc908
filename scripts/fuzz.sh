#!/usr/bin/env bash
# Fuzzes everything that reads bytes of strangers, and prints what was run. An input fails if it panics, takes more than a
# second of processor time, or more than 64 MB of memory beyond its own size (tests/fuzz/src/limit.rs).
#
#   scripts/fuzz.sh SECONDS [TARGET...]     each target (default: all) for so many seconds, JOBS=2 of them at a time
#
# Needs a C++ compiler and the stable toolchain: libFuzzer comes with the crate, and coverage is a pass of LLVM that stable
# rustc runs too. `cargo +nightly fuzz run --fuzz-dir tests/fuzz TARGET` does the same with AddressSanitizer.
# Inputs that add coverage are collected in target/fuzz/corpus, failures in target/fuzz/failures. What is to stay goes into
# tests/fuzz/corpus, which `cargo test` runs through the same functions.
set -euo pipefail
cd "$(dirname "$0")/.."

if [ $# -lt 1 ]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
seconds=$1
shift
host=$(rustc -vV | sed -n 's/^host: //p')
out=$PWD/target/fuzz
mkdir -p "$out/corpus" "$out/failures" "$out/logs"

flags=(-Cpasses=sancov-module --cfg fuzzing)
for option in level=4 trace-compares inline-8bit-counters pc-table; do
  flags+=("-Cllvm-args=-sanitizer-coverage-$option")
done
RUSTFLAGS="${flags[*]}" cargo build --locked --release --bins --manifest-path tests/fuzz/Cargo.toml \
  --target "$host" --target-dir "$out/build"

targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=($(ls tests/fuzz/corpus))

# Inputs become files: on a disk in memory if there is one.
scratch=$(mktemp -d -p "$([ -w /dev/shm ] && echo /dev/shm || echo "${TMPDIR:-/tmp}")")
trap 'rm -rf "$scratch"' EXIT

fuzz() {
  local target=$1 status=0
  mkdir -p "$out/corpus/$target" "$scratch/$target"
  # The clock says less than processor time where others work too: it only catches what never ends.
  TMPDIR=$scratch/$target nice -n 19 "$out/build/$host/release/$target" -max_total_time="$seconds" -max_len=131072 \
    -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix="$out/failures/$target-" \
    "$out/corpus/$target" "tests/fuzz/corpus/$target" >"$out/logs/$target.log" 2>&1 || status=$?
  local log=$out/logs/$target.log
  local runs covered
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
  covered=$(grep -o 'cov: [0-9]* ft: [0-9]* corp: [0-9]*' "$log" | tail -1)
  printf '%-14s %12s runs in %s s   %s   %s\n' "$target" "${runs:-?}" "$seconds" "$covered" \
    "$([ "$status" = 0 ] && echo 'no failure' || echo "FAILED ($status), see $log")"
  return "$status"
}

failed=0
running=0
for target in "${targets[@]}"; do
  if [ "$running" -ge "${JOBS:-2}" ]; then
    wait -n || failed=1
    running=$((running - 1))
  fi
  fuzz "$target" &
  running=$((running + 1))
done
while [ "$running" -gt 0 ]; do
  wait -n || failed=1
  running=$((running - 1))
done
exit "$failed"
