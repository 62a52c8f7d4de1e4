#!/bin/sh
# Runs every fuzz target for a while (seconds, default 30) on the stable toolchain: coverage comes
# from the compiler's own pass, libFuzzer itself is built by the C++ compiler.
set -eu
cd "$(dirname "$0")"
seconds=${1:-30}
: "${CARGO_TARGET_DIR:=$HOME/.cache/outrigger/target}"
CARGO_TARGET_DIR=$CARGO_TARGET_DIR/fuzz
export CARGO_TARGET_DIR
export CXX="${CXX:-g++}"
# With --target below these flags reach our crates and their dependencies, not build scripts. They
# replace the repository's own, on purpose: libFuzzer intercepts memcmp, which needs a dynamic binary.
export RUSTFLAGS="-Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares \
-Ccodegen-units=1 --cfg fuzzing"
cargo build --release --target x86_64-unknown-linux-gnu
for source in targets/*.rs; do
  name=$(basename "$source" .rs)
  corpus=$CARGO_TARGET_DIR/corpus/$name
  mkdir -p "$corpus"
  echo "fuzz: $name for $seconds s"
  log=$CARGO_TARGET_DIR/$name.log
  # Findings (crash-*, timeout-*) are written beside the log.
  if "$CARGO_TARGET_DIR/x86_64-unknown-linux-gnu/release/$name" "$corpus" \
    -max_total_time="$seconds" -timeout=10 -rss_limit_mb="${FUZZ_RSS_MB:-2048}" \
    -artifact_prefix="$CARGO_TARGET_DIR/$name-" -print_final_stats=1 -verbosity=0 >"$log" 2>&1
  then
    grep -E '^stat::(number_of_executed_units|new_units_added|peak_rss_mb)' "$log"
  else
    tail -n 60 "$log"
    echo "fuzz: $name failed, see $log"
    exit 1
  fi
done
