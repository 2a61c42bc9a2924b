#!/usr/bin/env bash
# A storm of changes under load: 50 changes a second for 60 s (routes, upstreams, nodes, certificates, plugins, policies,
# consumers; SVIDs rotate beside them) while clients ask an ingress over plain HTTP and TLS, HTTP/1.1 and HTTP/2, kept and new
# connections, directly and through a sidecar. Prints changes, requests, failed, and latencies from when each request was due.
# Ends with 0 only when nothing failed. It is tests/gateway/storm.rs with other numbers; it runs the binary of the test build,
# or the one that WARDGATE_STORM_PROFILE names (`release`).
set -euo pipefail
cd "$(dirname "$0")/../.."

profile="${WARDGATE_STORM_PROFILE:-dev}"
export WARDGATE_STORM_SECONDS="${WARDGATE_STORM_SECONDS:-60}"
export WARDGATE_STORM_CHANGES="${WARDGATE_STORM_CHANGES:-50}"
export WARDGATE_STORM_RATE="${WARDGATE_STORM_RATE:-300}"
exec cargo test --locked --profile "$profile" --test gateway -- --exact --nocapture \
  storm::no_request_fails_while_everything_changes
