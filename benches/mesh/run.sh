#!/usr/bin/env bash
# client -> sidecar -> mTLS -> sidecar -> app, beside the same topology made of Debian's nginx and HAProxy, and of Envoy when it is
# there, in the same run. See README.md here for what is measured; `./run.sh --help` for the switches.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

packages=()
want() { command -v "$1" >/dev/null || packages+=("$2"); }
PATH="$PATH:/usr/sbin"
want nginx nginx-light
want haproxy haproxy
want h2load nghttp2-client
want openssl openssl
want python3 python3
want taskset util-linux
if [ ${#packages[@]} -gt 0 ]; then
  printf 'install these first: apt-get install -y --no-install-recommends %s\n' "${packages[*]}" >&2
  exit 1
fi

# The load generator is a package of its own, so that nothing of it is in the product. MESH_LOAD names one that is built.
case " $* " in
  *" --help "* | *" -h "*) exec python3 "$here/mesh.py" --help ;;
esac
if [ -z "${MESH_LOAD:-}" ]; then
  cargo build --quiet --release --locked --manifest-path "$here/load/Cargo.toml" --target-dir "$here/load/target"
  MESH_LOAD="$here/load/target/release/mesh-load"
fi

# Built here unless WARDGATE names a binary or nothing of ours is asked for.
asked=yes
for word in "$@"; do
  if [ "${before:-}" = --only ]; then
    case ",$word," in *,wardgate,*) ;; *) asked=no ;; esac
  fi
  before=$word
done
if [ $asked = yes ] && [ -z "${WARDGATE:-}" ]; then
  cargo build --release --locked --bin wardgate
  WARDGATE="${CARGO_TARGET_DIR:-target}/release/wardgate"
fi
[ -z "${WARDGATE:-}" ] || WARDGATE=$(realpath "$WARDGATE")
export MESH_LOAD WARDGATE="${WARDGATE:-}"
exec python3 "$here/mesh.py" "$@"
