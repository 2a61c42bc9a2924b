//! Decision logs at the control plane: shipped, checked, countersigned, kept, asked.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use wardgate::rt::crypto::digest::{SHA256, digest};

use crate::world::{
    Admin, App, Ended, Process, World, eventually, eventually_async, run, wardgate,
};

/// A control plane, and its sidecars /billing and /cart, which let /shop read.
struct Mesh {
    control: Process,
    billing: Process,
    cart: Process,
    admin: Admin,
}

async fn mesh(world: &World, app: &App) -> Mesh {
    let control = world.control().start();
    let admin = control.admin();
    let rule = json!({ "name": "read", "from": { "principals": [world.id("/shop")] }, "to": { "methods": ["GET"] } });
    let policy = json!({ "id": "read", "action": "allow", "rules": [rule] });
    admin.put("/identity_policies/read", &policy).await;
    let start = |path: &str| world.sidecar(path).app(app).fed_by(&control).start();
    let (billing, cart) = (start("/billing"), start("/cart"));
    Mesh { control, billing, cart, admin }
}

/// A command that asks the control plane.
fn ask(admin: &Admin, arguments: &[&str]) -> Ended {
    let url = format!("http://{}", admin.address);
    let output = wardgate()
        .args(arguments)
        .env("WARDGATE_ADMIN", url)
        .env("WARDGATE_KEY", &admin.key)
        .output();
    Ended::of(&output.unwrap())
}

/// Waits until the archive has the records of these denials.
async fn has(admin: &Admin, denials: &[String]) {
    for denial in denials {
        eventually_async(&format!("{denial} in the archive"), || async {
            let found = admin.get(&format!("/audit/records?denial={denial}")).await;
            match found["records"].as_array().map(Vec::len) {
                Some(0) => None,
                Some(1) => Some(()),
                _ => panic!("more than once: {found}"),
            }
        })
        .await;
    }
}

/// Waits until a log's last seal is in the archive, countersigned, and the log notes a countersignature.
async fn countersigned(admin: &Admin, process: &Process) {
    process.record_with("/event", &json!("countersigned"));
    eventually_async("the last seal is countersigned", || async {
        let last = process.audit().iter().rev().find_map(|record| {
            let is_seal = record["type"] == "seal" && record["event"].is_null();
            is_seal.then(|| record["seq"].as_u64().unwrap())
        })?;
        let chains = admin.get("/audit/chains").await;
        let chains = chains["chains"].as_array().unwrap().clone();
        let mine = chains.iter().find(|chain| chain["origin"] == process.id)?;
        (mine["countersigned"].as_u64() >= Some(last)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn what_data_planes_decide_is_at_the_control_plane_and_answers_questions() {
    let world = World::new();
    let app = App::echo("app");
    let Mesh { control, billing, cart, admin } = mesh(&world, &app).await;
    let (shop, thief) = (world.peer("/shop"), world.peer("/thief"));
    eventually_async("the policy is in force", || async {
        (shop.send(&billing, "GET", "/a", &[], "").await.status == 200
            && shop.send(&cart, "GET", "/a", &[], "").await.status == 200)
            .then_some(())
    })
    .await;
    let denied = shop.send(&billing, "DELETE", "/a/1", &[], "").await.denial().to_owned();
    let stolen = thief.send(&cart, "GET", "/b", &[], "").await.denial().to_owned();
    has(&admin, &[denied.clone(), stolen.clone()]).await;

    // By question, as people ask.
    let (billing_id, shop_id) = (world.id("/billing"), world.id("/shop"));
    let text = ask(&admin, &["audit", "query", "--outcome", "deny", "--dst", "billing"]).good();
    assert!(text.contains(&denied) && !text.contains(&stolen), "{text}");
    let lines = ask(&admin, &["audit", "query", "--denial", &stolen, "-o", "json"]).good();
    let own = std::fs::read_to_string(cart.audit_file()).unwrap();
    assert!(own.lines().any(|line| line == lines.trim_end()), "byte for byte: {lines}");
    assert_eq!(ask(&admin, &["audit", "query", "--denial", "d-0000000000"]).code, Some(1));
    assert_eq!(ask(&admin, &["audit", "query", "--outcome", "maybe"]).code, Some(1));
    let who = ask(&admin, &["who-did", "billing", "--since", "1h"]).good();
    let row = who.lines().find(|line| line.contains(&shop_id)).unwrap_or_else(|| panic!("{who}"));
    let figures: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(figures[2], "1", "one was refused: {who}");
    assert!(!who.contains(&world.id("/thief")), "{who}");
    let json: Value =
        serde_json::from_str(&ask(&admin, &["who-did", "cart", "-o", "json"]).good()).unwrap();
    let of = |id: &str| {
        let callers = json["callers"].as_array().unwrap();
        callers.iter().find(|caller| caller["spiffe_id"] == id).unwrap().clone()
    };
    assert_eq!(of(&world.id("/thief"))["denied"], 1);
    assert_eq!(ask(&admin, &["who-did", "nobody"]).code, Some(1));
    let local = run(["who-did", "billing", "--log", billing.audit_file().to_str().unwrap()]).good();
    assert!(local.contains(&shop_id), "{local}");
    let why = ask(&admin, &["explain", "denial", &denied]).good();
    assert!(
        why.contains(&denied) && why.contains("the archive") && why.contains(&billing_id),
        "{why}"
    );
    let tail = ask(&admin, &["audit", "tail", "-n", "50", "--denied"]).good();
    assert!(tail.contains(&denied) && tail.contains(&stolen), "{tail}");

    // What is asked stands on record, and is collected itself.
    eventually_async("the question is on record", || async {
        let found =
            admin.get("/audit/records?type=admin&path_prefix=/apisix/admin/audit/who-did").await;
        found["records"].as_array().filter(|found| !found.is_empty()).map(|_| ())
    })
    .await;
    let bad = admin.ask("GET", "/audit/records?colour=red", None).await;
    assert_eq!(bad.status, 400, "{}", bad.text());
    assert_eq!(admin.ask("GET", "/audit/records?limit=5000", None).await.status, 400);

    // Live, from the control plane and from the local log.
    let tap = |arguments: &[&str]| {
        let url = format!("http://{}", admin.address);
        let mut command = wardgate();
        command.args(["tap", "--verdict", "denied", "-n", "1"]).args(arguments);
        if !arguments.contains(&"--log") {
            command.env("WARDGATE_ADMIN", url).env("WARDGATE_KEY", &admin.key);
        }
        command.stdout(Stdio::piped()).spawn().unwrap()
    };
    let log = billing.audit_file();
    for (tap, expected) in [
        (tap(&["--to", "billing", "--path", "/tap"]), "DENY "),
        (tap(&["--log", log.to_str().unwrap(), "-o", "json"]), "\"outcome\":\"deny\""),
    ] {
        let mut tap = Some(tap);
        let mut told = None;
        while told.is_none() {
            shop.send(&billing, "DELETE", "/tap/1", &[], "").await;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            if tap.as_mut().unwrap().try_wait().unwrap().is_some() {
                told = Some(Ended::of(&tap.take().unwrap().wait_with_output().unwrap()).good());
            }
        }
        let told = told.unwrap();
        assert_eq!(told.lines().count(), 1, "{told}");
        assert!(told.contains(expected) && told.contains("/tap/1"), "{told}");
    }

    // Everything is what was written, and signed for by two.
    countersigned(&admin, &billing).await;
    let archive = ask(&admin, &["audit", "verify"]).good();
    assert!(archive.contains(&format!("{billing_id} on billing")), "{archive}");
    assert!(archive.contains(&control.id), "{archive}");
    let bundle = world.authority().join("root.pem");
    let verified = ask(
        &admin,
        &[
            "audit",
            "verify",
            billing.audit_file().to_str().unwrap(),
            "--bundle",
            bundle.to_str().unwrap(),
            "--trust-domain",
            world.domain,
        ],
    )
    .good();
    assert!(verified.contains(&format!("by {}", control.id)), "{verified}");
    assert!(verified.contains("archive: the same up to record"), "{verified}");
    drop(cart);
}

#[tokio::test]
async fn a_control_plane_that_is_killed_again_and_again_loses_nothing() {
    let world = World::new();
    let app = App::echo("app");
    let Mesh { mut control, billing, cart, admin } = mesh(&world, &app).await;
    let feed = json!(control.address("feed").to_string());
    let part = world.control().set("control.feed", &feed);
    let thief = world.peer("/thief");
    let mut connection = thief.connect(&billing).await;
    let mut denials = Vec::new();
    let mut addresses = admin.address;
    for _ in 0..3 {
        // Below the number from which refusals of one kind are counted together.
        for number in 0..30 {
            let answer = connection.send("GET", "/x", &[], "").await;
            denials.push(answer.denial().to_owned());
            if number == 25 {
                control.kill();
            }
        }
        control = part.start();
        addresses = control.address("admin");
    }
    let admin = Admin { address: addresses, key: admin.key };
    assert_eq!(denials.iter().collect::<BTreeSet<_>>().len(), 90);
    has(&admin, &denials).await;
    let verified = ask(&admin, &["audit", "verify"]).good();
    assert!(verified.contains("result: the archive is what came"), "{verified}");
    drop(cart);
}

#[tokio::test]
async fn a_log_that_was_changed_or_cut_after_it_was_shipped_is_found_out() {
    let world = World::new();
    let app = App::echo("app");
    let Mesh { control, mut billing, cart: _cart, admin } = mesh(&world, &app).await;
    let thief = world.peer("/thief");
    let mut denials = Vec::new();
    for _ in 0..5 {
        denials.push(thief.send(&billing, "GET", "/x", &[], "").await.denial().to_owned());
    }
    has(&admin, &denials).await;
    countersigned(&admin, &billing).await;
    billing.end();
    let file = billing.audit_file();
    let whole = std::fs::read_to_string(&file).unwrap();
    let verify = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let path = file.to_str().unwrap();
        let alone = run(["audit", "verify", path]);
        (alone.code, ask(&admin, &["audit", "verify", path]))
    };
    // The end of the process may have come after the last that was shipped; the archive has no more than the file.
    let (alone, compared) = verify(&whole);
    assert_eq!((alone, compared.code), (Some(0), Some(0)), "{}", compared.out);

    // The end is cut off: the rest is a whole chain, and only who has signed for the end knows of it.
    let lines: Vec<&str> = whole.lines().collect();
    let last = lines.iter().position(|line| line.contains(&denials[4])).unwrap();
    let (alone, compared) = verify(&(lines[..last].join("\n") + "\n"));
    assert_eq!((alone, compared.code), (Some(0), Some(1)), "{}", compared.out);
    assert!(
        compared.out.contains("[cut_off]") && compared.out.contains("its end was cut off"),
        "{}",
        compared.out
    );

    // A refusal becomes an allowed request, and everything behind it is chained to that, without seals.
    let at = lines.iter().position(|line| line.contains(&denials[2])).unwrap();
    let forged = chained_anew(&lines, at);
    let (alone, compared) = verify(&forged);
    assert_eq!((alone, compared.code), (Some(0), Some(1)), "{}", compared.out);
    assert!(
        compared.out.contains("[differs]") || compared.out.contains("[cut_off]"),
        "{}",
        compared.out
    );

    // The data plane comes back with that log: it is not taken for the one that was stored.
    std::fs::write(&file, &forged).unwrap();
    forget_cursors(&billing.state);
    let again = world
        .sidecar("/billing")
        .app(&app)
        .set("control_plane", &json!({ "address": control.address("feed").to_string() }));
    let again = again.start();
    eventually_async("an alarm", || async {
        let alarms = admin.get("/audit/alarms").await["alarms"].as_array().unwrap().clone();
        alarms.into_iter().find(|alarm| alarm["code"] == "rewritten")
    })
    .await;
    let alarm = control.record_with("/alarm", &json!("rewritten"));
    assert_eq!((&alarm["type"], &alarm["origin"]), (&json!("loss"), &json!(world.id("/billing"))));
    has(&admin, &denials).await;
    assert_eq!(ask(&admin, &["audit", "verify"]).code, Some(1), "the alarm stays");
    drop(again);
}

/// The lines with the one at `at` saying another outcome, each behind it chained to it, and no seal behind it.
fn chained_anew(lines: &[&str], at: usize) -> String {
    let mut out: Vec<String> = lines[..at].iter().map(|line| (*line).to_owned()).collect();
    let hash_of = |line: &str| {
        serde_json::from_str::<Value>(line).unwrap()["hash"].as_str().unwrap().to_owned()
    };
    let mut prev = hash_of(&out[at - 1]);
    let mut seq = at as u64 + 1;
    for (number, line) in lines.iter().enumerate().skip(at) {
        let record: Value = serde_json::from_str(line).unwrap();
        if record["type"] == "seal" {
            continue;
        }
        let mut open = line.split(",\"prev\":\"").next().unwrap().to_owned();
        open =
            open.replacen(&format!("{{\"seq\":{}", record["seq"]), &format!("{{\"seq\":{seq}"), 1);
        if number == at {
            open = open.replace("\"outcome\":\"deny\"", "\"outcome\":\"allow\"");
        }
        open.push_str(&format!(",\"prev\":\"{prev}\""));
        let mut bytes = hex::decode(&prev).unwrap();
        bytes.extend_from_slice(open.as_bytes());
        bytes.push(b'}');
        prev = hex::encode(digest(&SHA256, &bytes));
        out.push(format!("{open},\"hash\":\"{prev}\"}}"));
        seq += 1;
    }
    out.join("\n") + "\n"
}

/// As somebody does who wants his log to be read anew.
fn forget_cursors(state: &Path) {
    eventually("the folder of cursors", || {
        std::fs::remove_dir_all(state.join("audit-cursors")).ok()
    });
}
