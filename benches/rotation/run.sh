#!/usr/bin/env bash
# Rotation under load: 2,000 requests a second for 60 s through two sidecars of the release build, half of them over kept
# connections and half over a new connection each (from the client and, with its handshake, between the sidecars). SVIDs
# rotate each 2 s, the root in the middle. Prints requests, failed, and latencies from when each request was due.
# Ends with 0 only when nothing failed. It is tests/gateway/rotation.rs with other numbers.
set -euo pipefail
cd "$(dirname "$0")/../.."

target="${CARGO_TARGET_DIR:-$PWD/target}"
cargo build --locked --release --bin wardgate
export WARDGATE_ROTATION_PROGRAM="${WARDGATE_ROTATION_PROGRAM:-$target/release/wardgate}"
export WARDGATE_ROTATION_RATE="${WARDGATE_ROTATION_RATE:-2000}"
export WARDGATE_ROTATION_SECONDS="${WARDGATE_ROTATION_SECONDS:-60}"
export WARDGATE_ROTATION_EVERY_MILLIS="${WARDGATE_ROTATION_EVERY_MILLIS:-2000}"
export WARDGATE_ROTATION_KEPT_TO_FRESH="${WARDGATE_ROTATION_KEPT_TO_FRESH:-1}"
exec cargo test --locked --test gateway -- --exact --nocapture \
  rotation::no_request_fails_while_certificates_and_the_root_rotate
