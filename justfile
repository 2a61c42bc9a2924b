# The verbs of the house; `just` lists them. Each is one plain command, so that you can do without just.

_list:
    @just --list --unsorted

# Compiles everything, tests and benches too, without making a binary: the quickest answer.
check:
    cargo check --locked --all-targets

# Every test; installs what the tests use on a bare Debian machine.
test *ARGS:
    ./test {{ ARGS }}

# clippy as CI runs it.
lint:
    cargo clippy --locked --all-targets -- -D warnings

# What may be in the tree of dependencies (cargo install --locked cargo-deny).
deny:
    cargo deny check bans licenses sources

# The documentation, without warnings.
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps

# Micro benches; `just bench mesh` runs the sidecars beside nginx, `just bench control` the control plane at scale.
bench WHAT="":
    {{ if WHAT == "mesh" { "benches/mesh/run.sh" } else if WHAT == "control" { "benches/control/run.sh" } else { "cargo bench --locked " + WHAT } }}

# Fuzzes one target for a minute (cargo install --locked cargo-fuzz; see fuzz/README.md).
fuzz TARGET SECONDS="60":
    cargo fuzz run --sanitizer none {{ TARGET }} -- -max_total_time={{ SECONDS }}

# A certificate authority and two identities for trying things out, in certs/out (see certs/README.md).
cert:
    cargo run --locked -- identity init --dir certs/out/authority --trust-domain example.org
    cargo run --locked -- identity issue --dir certs/out/authority --id spiffe://example.org/shop --out certs/out/shop
    cargo run --locked -- identity issue --dir certs/out/authority --id spiffe://example.org/billing --out certs/out/billing

# The demo, or any other command: `just run dev --to http://127.0.0.1:8000`.
run *ARGS="demo":
    cargo run --locked -- {{ ARGS }}

# Formats in place.
fmt:
    cargo fmt --all
