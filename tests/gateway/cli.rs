//! What people type: it works when pasted, says what is wrong, and ends with the right code.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use wardgate::roles::Settings;

use crate::world::{
    App, Ended, Process, World, allow, eventually, eventually_async, get, run, wardgate,
};

// ---- demo ----

#[test]
fn the_demo_shows_one_allowed_and_two_refused_calls_and_ends_well() {
    let begun = Instant::now();
    let told = run(["demo", "--exit"]).good();
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    for part in [
        "1 ALLOWED",
        "2 DENIED",
        "3 REFUSED",
        "all three outcomes as expected",
        "denial d-",
        "nearest rule  billing-read/read (fails on: methods)",
        "reason unknown_authority",
        "TLSv1_3",
        "spiffe://demo.local/shop",
    ] {
        assert!(told.contains(part), "{part}: {told}");
    }
    assert!(!told.contains("NOT"), "{told}");
}

#[test]
fn what_the_demo_invites_to_try_works_when_pasted() {
    let folder = Folder::new();
    let mut command = wardgate();
    command.arg("demo").env("TMPDIR", &folder.0);
    let mut demo = Process::launch("demo", command, &folder.0);
    demo.line("the last line", |line| line.contains("Ctrl-C ends the demo"));
    let lines = demo.lines();
    let pasted = |start: &str| {
        let found = lines.iter().map(|line| line.trim()).filter(|line| line.starts_with(start));
        found.map(str::to_owned).collect::<Vec<_>>()
    };
    let export = &pasted("export ")[0];
    let curls = pasted("curl ");
    let answers: Vec<String> =
        curls.iter().map(|curl| bash(&format!("{export}\n{curl}"), &folder.0).good()).collect();
    assert!(answers[0].starts_with("HTTP/1.1 200"), "{}", answers[0]);
    assert!(answers[1].starts_with("HTTP/1.1 403"), "{}", answers[1]);
    assert!(answers[2].contains("billing-read"), "{}", answers[2]);
    let denial = answers[1]
        .lines()
        .find_map(|line| line.strip_prefix("x-wardgate-denial: "))
        .unwrap_or_else(|| panic!("no denial id: {}", answers[1]));
    // The record is written within moments.
    eventually("the explanation", || {
        let explain = bash(&format!("{export}\nwardgate explain denial {denial}"), &folder.0);
        (explain.code == Some(0) && explain.out.contains("DELETE /invoices/7")).then_some(())
    });
    let verify = bash(&format!("{export}\nwardgate audit verify"), &folder.0).good();
    assert!(verify.contains("the chain is whole"), "{verify}");

    assert!(demo.end().success());
    let left: Vec<_> = std::fs::read_dir(&folder.0)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("wardgate-"))
        .collect();
    assert!(left.is_empty(), "nothing is kept: {left:?}");
}

// ---- dev ----

/// The user's own application: python's file server on a free port.
struct FileServer {
    child: Child,
    port: u16,
}

impl FileServer {
    fn of(folder: &Path) -> Self {
        let mut child = Command::new("python3")
            .args(["-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory"])
            .arg(folder)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("python3 is needed by this test: apt-get install python3");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.split(" port ").nth(1).and_then(|rest| rest.split(' ').next());
        let port = port.unwrap_or_else(|| panic!("no port: {line:?}")).parse().unwrap();
        Self { child, port }
    }
}

impl Drop for FileServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> Self {
        Self(crate::etcd_server::new_folder("cli"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `wardgate dev` in a folder, on free ports, once it has told how to use it: the process, and the lines to paste.
fn dev(folder: &Path, port: u16) -> (Process, Vec<String>) {
    let mut command = wardgate();
    command.current_dir(folder).args(["dev", "--to", &format!("http://127.0.0.1:{port}")]);
    for port in ["ingress", "admin", "inbound", "outbound", "status"] {
        command.args([format!("--{port}-port"), "0".to_owned()]);
    }
    let process = Process::launch("dev", command, folder);
    process.line("the third curl line", |line| line.starts_with("curl") && line.contains("-X PUT"));
    let lines = process.lines();
    let pasted = lines
        .into_iter()
        .filter(|line| ["export ", "curl "].iter().any(|start| line.starts_with(start)));
    (process, pasted.collect())
}

/// Pastes lines into a shell in this folder, with the binary in its path.
fn bash(script: &str, folder: &Path) -> Ended {
    let binary = Path::new(env!("CARGO_BIN_EXE_wardgate")).parent().unwrap();
    let path = format!("{}:{}", binary.display(), std::env::var("PATH").unwrap());
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", script]).current_dir(folder).env("PATH", path);
    Ended::of(&command.output().unwrap())
}

#[tokio::test]
async fn dev_puts_a_sidecar_and_an_ingress_before_an_application_and_keeps_what_was_declared() {
    let folder = Folder::new();
    std::fs::write(folder.0.join("hello.txt"), "hello from python\n").unwrap();
    let server = FileServer::of(&folder.0);
    let (mut process, pasted) = dev(&folder.0, server.port);
    let [export, page, routes, change] = &pasted[..] else { panic!("{pasted:?}") };

    let answer = bash(&format!("{export}\n{page}"), &folder.0).good();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("hello.txt"), "{answer}");
    let listed = bash(&format!("{export}\n{routes}"), &folder.0).good();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["list"][0]["value"]["upstream_id"], "app");
    let changed = bash(&format!("{export}\n{change}"), &folder.0).good();
    assert!(changed.contains("\"key\":\"/apisix/routes/app\""), "{changed}");
    let with_id = |export: &str, page: &str| {
        eventually("the change at the ingress", || {
            let answer = bash(&format!("{export}\n{page}"), &folder.0).good();
            answer.to_lowercase().contains("\nx-request-id: ").then_some(())
        });
    };
    with_id(export, page);
    let verified = bash(&format!("{export}\nwardgate audit verify"), &folder.0).good();
    assert!(verified.contains("the chain is whole"), "{verified}");
    let checked = bash(&format!("{export}\nwardgate check"), &folder.0).good();
    assert!(checked.contains("0 problems"), "{checked}");
    for secret in ["admin.key", "store.redb", "last-good-app", "authority/root-key.pem"] {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.0.join(".wardgate").join(secret);
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{secret} is for its owner alone: {mode:o}");
    }
    assert!(process.end().success());

    // Another start finds it all again: the key, the route, the identity's root.
    let root = std::fs::read(folder.0.join(".wardgate/authority/root.pem")).unwrap();
    let (mut process, pasted) = dev(&folder.0, server.port);
    with_id(&pasted[0], &pasted[1]);
    assert_eq!(std::fs::read(folder.0.join(".wardgate/authority/root.pem")).unwrap(), root);
    assert!(process.end().success());
}

#[test]
fn dev_says_which_port_is_taken_and_how_to_choose_another() {
    let folder = Folder::new();
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = holder.local_addr().unwrap().port().to_string();
    let mut command = wardgate();
    command.current_dir(&folder.0).args(["dev", "--to", "http://127.0.0.1:1"]);
    command.args(["--ingress-port", &taken, "--admin-port", "0", "--inbound-port", "0"]);
    command.args(["--outbound-port", "0", "--status-port", "0"]);
    let ended = Ended::of(&command.output().unwrap());
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains(&taken) && ended.err.contains("--ingress-port"), "{}", ended.err);
    let ended = Ended::of(
        &wardgate().args(["dev", "--to", "elsewhere"]).current_dir(&folder.0).output().unwrap(),
    );
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("elsewhere"), "{}", ended.err);
}

// ---- check ----

fn check(arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
    let ended = run([&["check", "--output", "json"], arguments].concat());
    let findings: Value = serde_json::from_str(&ended.out)
        .unwrap_or_else(|_| panic!("no JSON: {}{}", ended.out, ended.err));
    (ended.code, findings.as_array().unwrap().clone())
}

fn problems(findings: &[Value]) -> Vec<(String, String)> {
    let text = |finding: &Value, field: &str| finding[field].as_str().unwrap().to_owned();
    let bad = findings.iter().filter(|finding| finding["grade"] == "problem");
    bad.map(|finding| (text(finding, "section"), text(finding, "text"))).collect()
}

#[test]
fn a_sidecar_that_is_in_order_passes_the_check() {
    let world = World::new();
    let app = App::echo("app");
    let control = world.control().start();
    let part = world.sidecar("/billing").app(&app).set("status", &json!("127.0.0.1:0"));
    let file = part.resources(&json!({
        "identity_policies": [allow("p", &[], &[&world.id("/shop")])],
    }));
    let (code, findings) = check(&["-c", file.settings_file().to_str().unwrap()]);
    assert_eq!((code, problems(&findings)), (Some(0), vec![]), "{findings:#?}");
    let text = serde_json::to_string(&findings).unwrap();
    for part in ["role sidecar", &world.id("/billing"), "1 policies, 1 rules for this workload"] {
        assert!(text.contains(part), "{part}: {text}");
    }

    let fed = world.sidecar("/shop").named("fed").fed_by(&control);
    let running = fed.start();
    eventually("the last good copy", || fed.state.join("last-good-sidecar").exists().then_some(()));
    let (code, findings) = check(&["-c", running.settings_file.to_str().unwrap()]);
    assert_eq!((code, problems(&findings)), (Some(0), vec![]), "{findings:#?}");
    let text = serde_json::to_string(&findings).unwrap();
    assert!(text.contains("is spiffe://shop.test/wardgate/control, mTLS in"), "{text}");
    assert!(text.contains("every peer is refused"), "no policy yet is a warning: {text}");
}

#[test]
fn each_problem_is_found_by_its_section_and_ends_with_code_1() {
    let world = World::new();
    let nothing = json!({});
    let part =
        || world.sidecar("/a").resources(&nothing).set("identity.first_within_seconds", &json!(0));
    let broken = json!({
        "identity_policies": [{ "id": "p", "action": "allow", "rules": [{ "to": { "paths": ["x"] } }] }],
    });
    let bad_ssl = json!({ "ssls": [{ "id": "s", "sni": "a.example", "cert": "no", "key": "no" }] });
    let nobody = json!({ "address": format!("127.0.0.1:{}", crate::world::free_port()) });
    for (part, section) in [
        (part().set("colour", &json!("red")), "settings"),
        (part().set("state_dir", &json!("/proc/nowhere")), "settings"),
        (part().set("identity.key", &json!("/nowhere/key.pem")), "identity"),
        (part().set("resources", &json!("/nowhere/r.yaml")), "feed"),
        (part().without("resources"), "feed"),
        (part().without("resources").set("control_plane", &nobody), "feed"),
        (part().named("b").resources(&broken), "policy"),
        (world.ingress().resources(&bad_ssl), "certificates"),
    ] {
        let (code, findings) = check(&["-c", part.settings_file().to_str().unwrap()]);
        let found = problems(&findings);
        assert_eq!(code, Some(1), "{section}: {findings:#?}");
        assert!(found.iter().any(|(where_, _)| where_ == section), "{section}: {found:?}");
    }
    let missing = run(["check", "-c", "/nowhere/settings.yaml"]);
    assert_eq!(missing.code, Some(1));
    assert!(missing.out.contains("/nowhere/settings.yaml"), "{}", missing.out);
    assert_eq!(run(["check"]).code, Some(1), "nothing to look at");
}

#[tokio::test]
async fn the_check_asks_a_control_plane_what_runs_where() {
    let world = World::new();
    let control = world.control().start();
    let admin = control.admin();
    let _ingress = world.ingress().fed_by(&control).start();
    let policy = allow("p", &[], &[&world.id("/shop")]);
    let revision = admin.put("/identity_policies/p", &policy).await;
    admin.applied(revision, 1).await;
    let url = format!("http://{}", admin.address);
    let (code, findings) = check(&["--admin", &url, "--key", &admin.key]);
    assert_eq!(code, Some(0), "{findings:#?}");
    let text = serde_json::to_string(&findings).unwrap();
    assert!(text.contains(&format!("wardgate-ingress runs revision {revision}")), "{text}");
    assert!(text.contains("1 identity policies"), "{text}");

    let (code, findings) = check(&["--admin", &url, "--key", "wrong"]);
    assert_eq!(code, Some(1));
    assert!(problems(&findings)[0].1.contains("key"), "{findings:?}");
    let (code, _) = check(&["--admin", "http://127.0.0.1:1", "--key", "k"]);
    assert_eq!(code, Some(1));
}

#[tokio::test]
async fn probes_tell_alive_from_ready_and_metrics_count() {
    let world = World::new();
    let app = App::echo("app");
    let part = world.control();
    let mut control = part.start();
    let feed = json!(control.address("feed").to_string());
    let billing =
        world.sidecar("/billing").app(&app).fed_by(&control).set("status", &json!("127.0.0.1:0"));
    control.end();
    let billing = billing.launch();
    let status = billing.address("status");
    assert_eq!(get(status, "/status").await.status, 200, "alive");
    let waiting = get(status, "/status/ready").await;
    assert_eq!(waiting.status, 503);
    assert!(waiting.text().contains("no configuration yet"), "{}", waiting.text());
    let _control = part.set("control.feed", &feed).start();
    eventually_async("readiness", || async {
        (get(status, "/status/ready").await.status == 200).then_some(())
    })
    .await;
    assert_eq!(world.peer("/shop").get(&billing, "/").await.status, 403);
    let metrics = get(status, "/metrics").await.text();
    assert!(metrics.contains("wardgate_"), "{metrics}");
}

#[test]
fn the_role_of_the_command_line_wins_and_logs_are_json_on_request() {
    let world = World::new();
    let part = world.sidecar("/a").resources(&json!({})).set("role", &json!("control"));
    let mut command = wardgate();
    command.args(["run", "--role", "sidecar", "--json-logs"]).env("WARDGATE_LOG", "info");
    command.env("WARDGATE_CONFIG", part.settings_file());
    let mut sidecar = Process::launch("a", command, &world.folder);
    sidecar.wait_ready();
    assert_ne!(sidecar.address("inbound").port(), 0);
    assert!(sidecar.end().success());
    assert_eq!(sidecar.lines().last().unwrap(), "stopped");
    let log = sidecar.errors();
    assert!(!log.is_empty());
    for line in log.lines() {
        assert!(serde_json::from_str::<Value>(line).is_ok(), "no JSON: {line}");
    }
}

// ---- help, completion, schema ----

const COMMANDS: [&str; 9] =
    ["demo", "dev", "run", "check", "explain", "audit", "identity", "schema", "completion"];

#[test]
fn help_names_each_command_and_teaches_the_first_steps() {
    let help = run(["--help"]).good();
    for command in COMMANDS {
        assert!(help.contains(&format!("  {command} ")), "{command}: {help}");
        let own = run([command, "--help"]).good();
        assert!(own.contains(&format!("Usage: wardgate {command}")), "{own}");
    }
    for part in ["wardgate demo", "wardgate dev --to", "Exit codes", "WARDGATE_ADMIN"] {
        assert!(help.contains(part), "{part}");
    }
    assert!(run(["--version"]).good().starts_with("wardgate "));
    for wrong in [
        &["no-such"][..],
        &["run"],
        &["demo", "--no-such"],
        &["run", "--role", "butler", "-c", "x"],
    ] {
        let ended = run(wrong);
        assert_eq!(ended.code, Some(2), "{wrong:?}");
        assert!(ended.err.contains("error:"), "{}", ended.err);
    }
}

#[test]
fn bash_completes_our_commands() {
    let folder = Folder::new();
    let script = "source <(wardgate completion bash)\n\
                  COMP_WORDS=(wardgate '') COMP_CWORD=1; _wardgate wardgate '' wardgate; echo \"${COMPREPLY[@]}\"";
    let offered = bash(script, &folder.0).good();
    for command in COMMANDS {
        assert!(offered.split_whitespace().any(|word| word == command), "{command}: {offered}");
    }
    for shell in ["zsh", "fish"] {
        assert!(run(["completion", shell]).good().contains("identity"), "{shell}");
    }
}

/// The settings files in the manifests of k8s/, by name.
fn manifests() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("k8s");
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "yaml") {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let documents: Vec<Value> = serde_saphyr::from_multiple(&text)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for document in documents {
            if let Some(settings) = document.pointer("/data/settings.yaml") {
                let name = document["metadata"]["name"].as_str().unwrap();
                found.push((name.to_owned(), settings.as_str().unwrap().to_owned()));
            }
        }
    }
    found
}

#[test]
fn the_manifests_have_settings_that_this_program_takes() {
    let schema: Value = serde_json::from_str(&run(["schema"]).good()).unwrap();
    jsonschema::meta::validate(&schema).expect("a valid JSON Schema");
    let schema = jsonschema::validator_for(&schema).unwrap();
    let mut settings = manifests();
    assert_eq!(settings.len(), 4, "issuer, control plane, two sidecars");
    // What stands in a comment, as the other choice, must be right as well.
    let (_, control) = settings.iter().find(|(name, _)| name == "wardgate-control").unwrap();
    let with_etcd: Vec<String> = control
        .lines()
        .filter(|line| !line.trim_start().starts_with("store:"))
        .map(|line| line.replacen("# ", "", 1))
        .collect();
    assert!(with_etcd.iter().any(|line| line.contains("etcd:")));
    settings.push(("wardgate-control with etcd".to_owned(), with_etcd.join("\n")));
    for (name, text) in settings {
        let parsed: Settings =
            serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}\n{text}"));
        assert_eq!(parsed.trust_domain().unwrap().as_str(), "example.org");
        assert_eq!(parsed.roles(None).unwrap().len(), 1);
        let value: Value = serde_saphyr::from_str(&text).unwrap();
        let errors: Vec<String> =
            schema.iter_errors(&value).map(|error| error.to_string()).collect();
        assert!(errors.is_empty(), "{name}: {errors:?}");
    }
    let wrong = json!({ "role": "sidecar", "trust_domain": "a.b", "colour": "red" });
    assert!(!schema.is_valid(&wrong), "unknown fields are refused by the schema as well");
}

#[tokio::test]
async fn what_the_manifests_readme_declares_can_be_declared() {
    let readme = include_str!("../../k8s/README.md");
    let world = World::of("example.org");
    let control = world.control().start();
    let admin = control.admin();
    let mut declared = 0;
    for part in readme.split("\nput ").skip(1) {
        let (path, rest) = part.split_once(" '").unwrap();
        let body: Value = serde_json::from_str(rest.split_once('\'').unwrap().0).unwrap();
        admin.put(&format!("/{path}"), &body).await;
        declared += 1;
    }
    assert_eq!(declared, 3);
}
