//! docs/spire.md, followed word for word: only places, ports and users become those of this test.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;
use wardgate::identity::{Identity, Svid, TrustBundle, TrustBundles};

use crate::etcd_server::new_folder;
use crate::programs::programs;
use crate::spire::{sees_programs, selectors_of};
use crate::world::{App, Ended, Peer, Process, eventually, free_port};

const GUIDE: &str = include_str!("../../docs/spire.md");

/// The guide's fenced block with this name.
fn block(name: &str) -> String {
    let mut lines = GUIDE.lines();
    let begins = |line: &&str| line.starts_with("```") && line.split(' ').nth(1) == Some(name);
    lines.find(begins).unwrap_or_else(|| panic!("docs/spire.md has no block {name:?}"));
    lines.take_while(|line| *line != "```").map(|line| format!("{line}\n")).collect()
}

/// What the guide's reader has elsewhere.
struct Place {
    folder: PathBuf,
    programs: PathBuf,
    replaced: Vec<(String, String)>,
}

impl Place {
    fn new(programs: &Path, app: &App) -> Self {
        let folder = new_folder("guide");
        let at = |name: &str| folder.join(name).display().to_string();
        let bin = folder.join("bin");
        for made in ["bin", "run/server", "run/agent", "lib/server", "lib/agent", "etc"] {
            std::fs::create_dir_all(folder.join(made)).unwrap();
        }
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_wardgate"), bin.join("wardgate")).unwrap();
        let selectors = selectors_of(Path::new(env!("CARGO_BIN_EXE_wardgate")));
        let selectors: Vec<String> =
            selectors.iter().map(|selector| format!("-selector {selector}")).collect();
        let replaced = [
            ("/run/spire", at("run")),
            ("/var/lib/spire", at("lib")),
            ("/var/lib/wardgate", at("state")),
            ("/etc/wardgate/billing.yaml", at("etc/billing.yaml")),
            (
                "discover_workload_path = true",
                format!("discover_workload_path = {}", sees_programs()),
            ),
            ("8081", free_port().to_string()),
            ("http://127.0.0.1:8080", format!("http://{}", app.address)),
            ("0.0.0.0:15006", "127.0.0.1:0".into()),
            ("127.0.0.1:15001", "127.0.0.1:0".into()),
            (
                "-selector unix:uid:1001 -selector unix:path:/usr/local/bin/wardgate",
                selectors.join(" "),
            ),
        ];
        let replaced = replaced.map(|(theirs, ours)| (theirs.to_owned(), ours)).into();
        Self { folder, programs: programs.to_owned(), replaced }
    }

    fn text(&self, name: &str) -> String {
        let adapt = |text: String, (theirs, ours): &(String, String)| text.replace(theirs, ours);
        self.replaced.iter().fold(block(name), adapt)
    }

    fn write(&self, name: &str, path: &str) {
        std::fs::write(self.folder.join(path), self.text(name)).unwrap();
    }

    fn shell(&self, script: &str) -> Command {
        let mut path = std::env::join_paths([&self.programs, &self.folder.join("bin")]).unwrap();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap());
        let mut command = Command::new("bash");
        command
            .args(["-euo", "pipefail", "-c", script])
            .env("PATH", path)
            .current_dir(&self.folder);
        command
    }

    /// A block of commands, to its end.
    fn run(&self, name: &str) {
        Ended::of(&self.shell(&self.text(name)).output().unwrap()).good();
    }

    /// A block whose last command goes on.
    fn start(&self, name: &str) -> Process {
        let script = self.text(name);
        let mut lines: Vec<&str> = script.lines().collect();
        let last = format!("exec {}", lines.pop().unwrap());
        lines.push(&last);
        Process::launch(name, self.shell(&lines.join("\n")), &self.folder)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

#[tokio::test]
async fn the_guide_leads_to_a_sidecar_that_serves_its_callers() {
    let Some(programs) = programs() else { return };
    let app = App::echo("billing");
    let place = Place::new(&programs, &app);
    for name in ["server.conf", "agent.conf", "billing.yaml"] {
        place.write(name, name);
    }
    place.write("resources", "etc/billing.yaml");
    let _server = place.start("server");
    let socket = place.folder.join("run/server/api.sock");
    eventually("the server", || UnixStream::connect(&socket).ok());
    let _agent = place.start("agent");
    let api = place.folder.join("run/agent/api.sock");
    eventually("the agent", || UnixStream::connect(&api).ok());
    place.run("entries");
    let mut sidecar = place.start("sidecar");
    sidecar.wait_ready();
    sidecar.id = "spiffe://shop.example/billing".into();
    sidecar.state = place.folder.join("state/billing");
    let record = sidecar.record_with("/event", &json!("first"));
    assert_eq!(record["spiffe_id"], json!(sidecar.id));

    let minted = place.folder.join("minted");
    std::fs::create_dir(&minted).unwrap();
    let mint = format!(
        "spire-server x509 mint -socketPath {} -spiffeID spiffe://shop.example/shop -write {}",
        socket.display(),
        minted.display()
    );
    Ended::of(&place.shell(&mint).output().unwrap()).good();
    let read = |path: &Path| std::fs::read(path).unwrap();
    let svid = Svid::from_pem(&read(&minted.join("svid.pem")), &read(&minted.join("key.pem")));
    let bootstrap = read(&place.folder.join("lib/agent/bootstrap.pem"));
    let bundle = TrustBundle::from_pem("shop.example".parse().unwrap(), &bootstrap).unwrap();
    let bundles: TrustBundles = [bundle].into_iter().collect();
    let shop = Peer::with(Identity::new(svid.unwrap(), bundles));
    assert_eq!(shop.get(&sidecar, "/invoices").await.status, 200);
}
