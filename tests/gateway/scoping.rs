//! What a data plane is never told is not in its memory either.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use memchr::memmem;
use serde_json::json;

use crate::world::{Part, Process, World, allow, eventually};

/// Which of these texts stand somewhere in the memory of a process.
///
/// Pages that were never touched are passed over: an allocator reserves far more than it uses.
fn in_memory<'t>(process: &Process, texts: &[&'t str]) -> Vec<&'t str> {
    const PAGE: u64 = 4096;
    let file = |name: &str| File::open(format!("/proc/{}/{name}", process.pid())).unwrap();
    let (memory, pages) = (file("mem"), file("pagemap"));
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", process.pid())).unwrap();
    let finders: Vec<_> = texts.iter().map(|text| memmem::Finder::new(*text)).collect();
    let mut found = vec![false; texts.len()];
    let mut look = |bytes: &[u8]| {
        for (found, finder) in found.iter_mut().zip(&finders) {
            *found = *found || finder.find(bytes).is_some();
        }
    };
    let number = |text| u64::from_str_radix(text, 16).unwrap();
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (start, rest) = line.split_once('-').unwrap();
        let (start, end) = (number(start), number(rest.split(' ').next().unwrap()));
        let mut present = vec![0; ((end - start) / PAGE * 8) as usize];
        let read = pages.read_at(&mut present, start / PAGE * 8).unwrap();
        let mut run = Vec::new();
        for (at, entry) in present[..read].chunks_exact(8).enumerate() {
            let entry = u64::from_le_bytes(entry.try_into().unwrap());
            let mut page = [0; PAGE as usize];
            // In memory, or in swap.
            let is_there = entry >> 62 != 0
                && memory.read_exact_at(&mut page, start + at as u64 * PAGE).is_ok();
            if is_there {
                run.extend_from_slice(&page);
            } else if !run.is_empty() {
                look(&run);
                run.clear();
            }
        }
        look(&run);
    }
    texts.iter().zip(found).filter(|(_, found)| *found).map(|(text, _)| *text).collect()
}

fn in_files<'t>(part: &Part<'_>, texts: &[&'t str]) -> Vec<&'t str> {
    let copy = std::fs::read_to_string(part.state.join("last-good-sidecar")).unwrap_or_default();
    texts.iter().copied().filter(|text| copy.contains(*text)).collect()
}

#[tokio::test]
async fn neither_memory_nor_last_good_copy_of_a_sidecar_has_what_is_another_workloads() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let parts = ["/billing", "/shop"]
        .map(|path| world.sidecar(path).fed_by(&control).env("WARDGATE_ALLOW_CORE_DUMPS", "1"));
    let running = parts.each_ref().map(Part::start);

    let consumer = |name: &str, plugin: &str, settings: serde_json::Value| json!({ "username": name, "plugins": { plugin: settings } });
    let proves = json!({ "spiffe_id": world.id("/secret-of-shop-eve") });
    admin
        .put(
            "/consumers/bob",
            &consumer("bob", "key-auth", json!({ "key": "secret-of-billing-bob" })),
        )
        .await;
    admin.put("/consumers/eve", &consumer("eve", "spiffe-auth", proves)).await;
    for (path, auth, listener) in
        [("/billing", "key-auth", "inbound"), ("/shop", "spiffe-auth", "inbound")]
    {
        let name = &path[1..];
        let upstream =
            json!({ "nodes": { format!("upstream-of-{name}.test:80"): 1 }, "pass_host": "node" });
        admin.put(&format!("/upstreams/{name}"), &upstream).await;
        let route = json!({
            "uri": format!("/route-of-{name}/*"), "upstream_id": name,
            "plugins": { auth: {} },
            "workload_selector": { "listener": listener, "spiffe_ids": [world.id(path)] },
        });
        admin.put(&format!("/routes/{name}"), &route).await;
        let policy = allow(name, &[&world.id(path)], &[&world.id(&format!("/caller-of-{name}"))]);
        admin.put(&format!("/identity_policies/{name}"), &policy).await;
    }
    let made = rcgen::generate_simple_self_signed(["public.test".to_owned()]).unwrap();
    let ssl = json!({ "sni": "public.test", "cert": made.cert.pem(), "key": made.signing_key.serialize_pem() });
    admin.put("/ssls/1", &ssl).await;
    let entry = json!({ "spiffe_id": world.id("/entry-of-issuer"), "selectors": ["unix:uid:1"] });
    admin.applied(admin.put("/workloads/w", &entry).await, 2).await;

    let of = |name: &str| {
        let told = ["upstream-of", "route-of", "caller-of", "secret-of"];
        told.map(|what| format!("{what}-{name}"))
    };
    // What stands in the middle of the public certificate's key.
    let pem = made.signing_key.serialize_pem();
    let key = pem.lines().nth(1).unwrap();
    for (part, process, own, other) in
        [(&parts[0], &running[0], "billing", "shop"), (&parts[1], &running[1], "shop", "billing")]
    {
        let (mine, foreign) = (of(own), of(other));
        let mine: Vec<&str> = mine.iter().map(String::as_str).collect();
        let foreign =
            foreign.iter().map(String::as_str).chain(["entry-of-issuer", "public.test", key]);
        let foreign: Vec<&str> = foreign.collect();
        eventually(&format!("the whole of {own} in its last good copy"), || {
            (in_files(part, &mine) == mine).then_some(())
        });
        assert_eq!(
            in_memory(process, &mine),
            mine,
            "what is its own is there, or this looks nowhere"
        );
        assert_eq!(in_memory(process, &foreign), <[&str; 0]>::default(), "in the memory of {own}");
        assert_eq!(in_files(part, &foreign), <[&str; 0]>::default(), "in the copy of {own}");
    }
}
