#!/usr/bin/env bash
# The control plane at scale: load, memory, convergence, sustained writes, and an etcd that goes away. See README.md here;
# `./run.sh --help` for the switches.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! command -v etcd >/dev/null; then
  printf 'install this first: apt-get install -y --no-install-recommends etcd-server\n' >&2
  exit 1
fi
# A thousand data planes have a connection each, at both ends.
ulimit -n "$(ulimit -Hn)"
exec cargo bench --quiet --locked --bench control -- --run "$@"
