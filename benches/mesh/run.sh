#!/usr/bin/env bash
# client -> sidecar -> mTLS -> sidecar -> app, beside the same topology made of Debian's nginx, in the same run.
# See README.md here for what is measured; `./run.sh --help` for the switches.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

packages=()
want() { command -v "$1" >/dev/null || packages+=("$2"); }
PATH="$PATH:/usr/sbin"
want nginx nginx-light
want wrk wrk
want h2load nghttp2-client
want openssl openssl
want python3 python3
want taskset util-linux
if [ ${#packages[@]} -gt 0 ]; then
  printf 'install these first: apt-get install -y --no-install-recommends %s\n' "${packages[*]}" >&2
  exit 1
fi

# Built here unless WARDGATE names a binary or the wardgate half is not asked for.
case " $* " in
  *" --only nginx "* | *" --help "* | *" -h "*) ;;
  *)
    if [ -z "${WARDGATE:-}" ]; then
      cargo build --release --locked
      WARDGATE="${CARGO_TARGET_DIR:-target}/release/wardgate"
    fi
    ;;
esac
export WARDGATE="${WARDGATE:-}"
exec python3 "$here/mesh.py" "$@"
