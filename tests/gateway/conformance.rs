//! The conformance runner: against the real sidecar, where every rule holds, and against a server that breaks many.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::world::{App, Ended, Process, eventually, free_port, run, wardgate};

/// The fixtures, made by the command.
struct Fixtures(PathBuf);

impl Fixtures {
    fn new() -> Self {
        let folder = crate::etcd_server::new_folder("conformance").join("fixtures");
        let said = run(["conformance", "spiffe", "init", "--dir", folder.to_str().unwrap()]).good();
        assert!(said.contains("target/svid.pem"), "{said}");
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Runs the cases with these arguments.
    fn run(&self, arguments: &[&str]) -> Ended {
        let dir = self.0.to_str().unwrap();
        run([&["conformance", "spiffe", "--dir", dir][..], arguments].concat())
    }

    /// The sidecar that `init` wrote the settings of, on free ports.
    fn sidecar(&self, app: &App, server: &str) -> Process {
        let change = |name: &str, changes: &[(&str, &str)]| {
            let path = self.path(name);
            let mut text = std::fs::read_to_string(&path).unwrap();
            for (from, to) in changes {
                assert!(text.contains(from), "{from} is not in {text}");
                text = text.replace(from, to);
            }
            std::fs::write(&path, text).unwrap();
            path
        };
        let app = app.address.to_string();
        let settings = change(
            "wardgate.yaml",
            &[
                ("127.0.0.1:15006", "127.0.0.1:0"),
                ("127.0.0.1:15001", "127.0.0.1:0"),
                ("127.0.0.1:8080", &app),
            ],
        );
        change("wardgate-resources.yaml", &[("127.0.0.1:9443", server)]);
        let mut command = wardgate();
        command.arg("run").arg("-c").arg(settings);
        let process = Process::launch("sidecar", command, &self.0);
        process.wait_ready();
        process
    }
}

impl Drop for Fixtures {
    fn drop(&mut self) {
        if let (false, Some(folder)) = (std::thread::panicking(), self.0.parent()) {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

fn rows(report: &Value) -> &Vec<Value> {
    report["rows"].as_array().expect("rows")
}

fn verdicts<'a>(report: &'a Value, verdict: &str) -> Vec<&'a str> {
    let rows = rows(report).iter().filter(|row| row["verdict"] == verdict);
    rows.map(|row| row["case"].as_str().unwrap()).collect()
}

#[test]
fn a_sidecar_holds_every_rule_in_both_directions() {
    let fixtures = Fixtures::new();
    let app = App::echo("app");
    let server = format!("127.0.0.1:{}", free_port());
    let sidecar = fixtures.sidecar(&app, &server);
    let (inbound, outbound) = (sidecar.address("inbound"), sidecar.address("outbound"));
    let ended = fixtures.run(&[
        "--target",
        &inbound.to_string(),
        "--outbound",
        &outbound.to_string(),
        "--listen",
        &server,
        "--json",
    ]);
    let report: Value = serde_json::from_str(&ended.out).expect(&ended.err);
    let broken = (verdicts(&report, "broken"), verdicts(&report, "unclear"));
    assert_eq!(broken, (vec![], vec![]), "{}", ended.out);
    assert_eq!((ended.code, &report["passed"]), (Some(0), &Value::Bool(true)));
    for side in ["inbound", "outbound"] {
        let count = rows(&report).iter().filter(|row| row["side"] == side).count();
        assert!(count > 60, "{side}: {count}");
    }
    let accepted = rows(&report).iter().filter(|row| row["side"] == "inbound");
    let accepted = accepted.filter(|row| row["seen"] == "accepted").count();
    assert_eq!(app.requests(), accepted + 1, "with the baseline, and nothing else came through");
    assert!(ended.err.contains("inbound 23a two SPIFFE IDs: refused"), "{}", ended.err);
}

#[test]
fn one_command_shows_it_without_any_set_up() {
    let ended = run(["conformance", "spiffe", "--self"]);
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.out, ended.err);
    assert!(ended.out.contains("0 broken, 0 unclear"), "{}", ended.out);
    assert!(!ended.out.contains("BROKEN"), "{}", ended.out);
    let few = run(["conformance", "spiffe", "--self", "--only", "23", "--only", "37a"]).good();
    assert_eq!(few.lines().filter(|line| line.contains(" held ")).count(), 10, "{few}");
    let none = run(["conformance", "spiffe", "--self", "--only", "999"]);
    assert_eq!(none.code, Some(1));
    assert!(none.err.contains("there is no such case"), "{}", none.err);
}

/// `openssl s_server`, which verifies chains and knows nothing of SPIFFE.
struct Plain {
    child: Child,
    address: String,
}

impl Plain {
    fn start(fixtures: &Fixtures, trusted: &Path) -> Self {
        let address = format!("127.0.0.1:{}", free_port());
        let file = |name: &str| fixtures.path(name).to_str().unwrap().to_owned();
        let child = Command::new("openssl")
            .args(["s_server", "-accept", &address, "-www", "-quiet"])
            .args(["-cert", &file("target/svid.pem"), "-cert_chain", &file("target/svid.pem")])
            .args(["-key", &file("target/key.pem"), "-CAfile", trusted.to_str().unwrap()])
            .args(["-Verify", "5", "-verify_return_error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is needed by this test: apt-get install openssl");
        eventually("openssl listens", || std::net::TcpStream::connect(&address).ok());
        Self { child, address }
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_server_that_only_checks_chains_breaks_the_rules_of_spiffe() {
    let fixtures = Fixtures::new();
    let all: Vec<u8> = ["conformance.test.pem", "federated.test.pem", "192.0.2.7.pem"]
        .iter()
        .flat_map(|name| std::fs::read(fixtures.path(name)).unwrap())
        .collect();
    let trusted = fixtures.path("all.pem");
    std::fs::write(&trusted, all).unwrap();
    let plain = Plain::start(&fixtures, &trusted);
    let ended = fixtures.run(&["--target", &plain.address, "--json"]);
    assert_eq!(ended.code, Some(1), "{}\n{}", ended.out, ended.err);
    let report: Value = serde_json::from_str(&ended.out).expect(&ended.err);
    let broken = verdicts(&report, "broken");
    // No SPIFFE ID, two, a merged store: what no library for chains can know.
    for case in ["22a", "23a", "24a", "26a", "31a", "44a", "53a", "53b"] {
        assert!(broken.contains(&case), "{case} is not among {broken:?}");
    }
    // What every verifier of chains knows.
    let held = verdicts(&report, "held");
    for case in ["0a", "22e", "34a", "36a", "36b", "36f", "37a", "38a", "39a", "42a", "52a"] {
        assert!(held.contains(&case), "{case} is not among {held:?}");
    }
    let text = fixtures.run(&["--target", &plain.address, "--only", "23"]);
    assert_eq!(text.code, Some(1));
    assert!(text.out.contains("BROKEN") && text.out.contains("accepted: HTTP 200"), "{}", text.out);
}

#[test]
fn a_proxy_that_takes_nobody_proves_nothing() {
    let fixtures = Fixtures::new();
    let federated = fixtures.path("federated.test.pem");
    let plain = Plain::start(&fixtures, &federated);
    let ended = fixtures.run(&["--target", &plain.address]);
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("a good X.509-SVID is not taken"), "{}", ended.err);
    assert_eq!(ended.out, "", "no report of refusals that mean nothing");

    let nobody = format!("127.0.0.1:{}", free_port());
    let ended = fixtures.run(&["--target", &nobody]);
    assert!(ended.err.contains("cannot connect"), "{}", ended.err);
    let ended = run(["conformance", "spiffe", "--dir", "/nowhere", "--target", &nobody]);
    assert!(ended.err.contains("no usable fixtures"), "{}", ended.err);
    assert_eq!(run(["conformance", "spiffe"]).code, Some(2), "wrong use");
}
