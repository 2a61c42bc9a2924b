//! The generated code in the tree is what its `.proto` files say. `WARDGATE_REGENERATE=1 cargo test --test codegen`
//! writes it anew; the build itself needs no protobuf compiler.

use std::path::Path;

/// (proto file in `proto/`, its package, the generated file, is the client wanted, is the server wanted)
const TABLE: &[(&str, &str, &str, bool, bool)] =
    &[("feed.proto", "wardgate.feed.v1", "src/sync/generated/feed.rs", true, true)];

#[test]
fn the_generated_code_is_what_the_proto_files_say() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = std::env::temp_dir().join(format!("wardgate-codegen-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    for (proto, package, generated, client, server) in TABLE {
        let descriptors =
            protox::compile([root.join("proto").join(proto)], [root.join("proto")]).unwrap();
        tonic_prost_build::configure()
            .build_client(*client)
            .build_server(*server)
            .emit_rerun_if_changed(false)
            .bytes(".wardgate.feed.v1")
            .out_dir(&folder)
            .compile_fds(descriptors)
            .unwrap();
        let wanted = std::fs::read_to_string(folder.join(format!("{package}.rs"))).unwrap();
        let target = root.join(generated);
        if std::env::var_os("WARDGATE_REGENERATE").is_some() {
            std::fs::create_dir_all(target.parent().unwrap()).unwrap();
            std::fs::write(&target, &wanted).unwrap();
        }
        let found = std::fs::read_to_string(&target).unwrap_or_default();
        assert!(
            found == wanted,
            "{generated} is not what proto/{proto} says: run WARDGATE_REGENERATE=1 cargo test --test codegen"
        );
    }
    std::fs::remove_dir_all(&folder).unwrap();
}
