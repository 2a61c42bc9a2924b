//! The generated code in the repository is what `proto/` says today: no protoc and no build script are needed to build.
//!
//! After a change of a `.proto` file: `WARDGATE_REGENERATE=1 cargo test --test codegen`.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::path::Path;

/// One `.proto` file and what is made of it.
struct Generated {
    /// Below `proto/`.
    proto: &'static str,
    /// The file's package; empty when it has none.
    package: &'static str,
    /// Below `src/`.
    out: &'static str,
    client: bool,
    server: bool,
    /// Messages with secrets: the room writes their `Debug` itself.
    without_debug: &'static [&'static str],
    /// Paths whose `bytes` fields share the received buffer instead of copying it.
    shared_bytes: &'static [&'static str],
    /// With a channel of tonic's own beside the client.
    transport: bool,
}

const ALL: &[Generated] = &[
    Generated {
        proto: "etcd.proto",
        package: "etcdserverpb",
        out: "store/generated/etcd.rs",
        client: true,
        server: false,
        without_debug: &[],
        shared_bytes: &[],
        transport: true,
    },
    Generated {
        proto: "feed.proto",
        package: "wardgate.feed.v1",
        out: "sync/generated/feed.rs",
        client: true,
        server: true,
        without_debug: &[],
        shared_bytes: &[".wardgate.feed.v1"],
        transport: true,
    },
    Generated {
        proto: "issuer.proto",
        package: "wardgate.issuer.v1",
        out: "issuer/generated/issuer.rs",
        client: true,
        server: true,
        without_debug: &[
            "EnrolRequest",
            "RenewRequest",
            "WatchRequest",
            "Proof",
            "KubernetesToken",
            "Enrolled",
        ],
        shared_bytes: &[],
        transport: false,
    },
    Generated {
        proto: "records.proto",
        package: "wardgate.records.v1",
        out: "audit/generated/records.rs",
        client: true,
        server: true,
        without_debug: &[],
        shared_bytes: &[".wardgate.records.v1"],
        transport: false,
    },
    Generated {
        proto: "otlp.proto",
        package: "opentelemetry.proto.collector.logs.v1",
        out: "audit/generated/otlp.rs",
        client: true,
        server: true,
        without_debug: &[],
        shared_bytes: &[],
        transport: false,
    },
    Generated {
        proto: "workload.proto",
        package: "",
        out: "identity/generated/workload.rs",
        client: true,
        server: true,
        without_debug: &["X509SVID", "JWTSVID", "ValidateJWTSVIDRequest"],
        shared_bytes: &[],
        transport: false,
    },
];

#[test]
fn generated_code_is_current() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let rewrite = std::env::var_os("WARDGATE_REGENERATE").is_some();
    let mut stale = Vec::new();
    for one in ALL {
        let made = generate(root, one);
        let out = root.join("src").join(one.out);
        if rewrite {
            std::fs::create_dir_all(out.parent().unwrap()).unwrap();
            std::fs::write(&out, made).unwrap();
        } else if std::fs::read_to_string(&out).unwrap_or_default() != made {
            stale.push(one.out);
        }
    }
    assert!(
        stale.is_empty(),
        "not what proto/ says: {stale:?}; run WARDGATE_REGENERATE=1 cargo test --test codegen"
    );
}

fn generate(root: &Path, one: &Generated) -> String {
    let work = Path::new(env!("CARGO_TARGET_TMPDIR")).join(one.proto);
    std::fs::create_dir_all(&work).expect("the target directory is ours");
    let descriptors =
        protox::compile([one.proto], [root.join("proto")]).expect("a valid .proto file");
    let mut builder = tonic_prost_build::configure();
    for path in one.shared_bytes {
        builder = builder.bytes(*path);
    }
    builder
        .build_client(one.client)
        .build_server(one.server)
        .build_transport(one.transport)
        .skip_debug(one.without_debug.iter().copied())
        .emit_rerun_if_changed(false)
        .out_dir(&work)
        .compile_fds(descriptors)
        .expect("code for it");
    let name = if one.package.is_empty() { "_" } else { one.package };
    let code =
        std::fs::read_to_string(work.join(format!("{name}.rs"))).expect("named by its package");
    format!("// Made by tests/codegen.rs from proto/{}; do not edit.\n\n{code}", one.proto)
}
