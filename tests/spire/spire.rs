//! SPIRE as its operators run it: a server, an agent that joins with a token, registration entries over the command line.
//!
//! ```text
//! let spire = Spire::start(&programs, "shop.test");
//! let world = World::of("shop.test");
//! let billing = world.sidecar("/billing").on(&spire, "/billing");
//! spire.server.register("/billing", &selectors(..), &[]);
//! ```

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::etcd_server::new_folder;
use crate::world::{Ended, Part, Process, World, eventually, free_port};

/// The path of the agent's own ID in every trust domain here.
const NODE: &str = "/node";

/// A server and one agent.
pub struct Spire {
    pub agent: Agent,
    pub server: Server,
}

impl Spire {
    pub fn start(programs: &Path, domain: &str) -> Self {
        let server = Server::start(programs, domain);
        let agent = Agent::start(&server);
        Self { agent, server }
    }
}

/// A spire-server with a SQLite file in a folder of its own.
pub struct Server {
    pub folder: PathBuf,
    pub domain: String,
    programs: PathBuf,
    port: u16,
    process: Option<Process>,
}

impl Server {
    pub fn start(programs: &Path, domain: &str) -> Self {
        Self::start_with(programs, domain, "")
    }

    /// With more in the configuration's `server` block.
    pub fn start_with(programs: &Path, domain: &str, more: &str) -> Self {
        let folder = new_folder("spire");
        let port = free_port();
        let here = folder.display();
        let configuration = format!(
            r#"
server {{
    bind_address = "127.0.0.1"
    bind_port = "{port}"
    socket_path = "{here}/server.sock"
    trust_domain = "{domain}"
    data_dir = "{here}/server"
    log_level = "INFO"
    {more}
    experimental {{
        cache_reload_interval = "200ms"
    }}
}}
plugins {{
    DataStore "sql" {{
        plugin_data {{
            database_type = "sqlite3"
            connection_string = "{here}/server/datastore.sqlite3"
        }}
    }}
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}
    KeyManager "disk" {{
        plugin_data {{
            keys_path = "{here}/server/keys.json"
        }}
    }}
}}
"#
        );
        std::fs::create_dir_all(folder.join("server")).unwrap();
        std::fs::write(folder.join("server.conf"), configuration).unwrap();
        let (programs, domain) = (programs.to_owned(), domain.to_owned());
        let mut server = Self { folder, domain, programs, port, process: None };
        server.resume();
        server
    }

    /// Runs it (again) on the same folder and port.
    pub fn resume(&mut self) {
        let mut command = Command::new(self.programs.join("spire-server"));
        command.args(["run", "-config"]).arg(self.folder.join("server.conf"));
        self.process = Some(Process::launch("spire-server", command, &self.folder));
        eventually("a healthy spire-server", || {
            (self.ask(&["healthcheck"]).code == Some(0)).then_some(())
        });
    }

    pub fn stop(&mut self) {
        self.process.take().unwrap().end();
    }

    /// A command of spire-server, to its end.
    pub fn ask(&self, arguments: &[&str]) -> Ended {
        let mut command = Command::new(self.programs.join("spire-server"));
        command.args(arguments).arg("-socketPath").arg(self.folder.join("server.sock"));
        Ended::of(&command.stdin(Stdio::null()).output().unwrap())
    }

    /// A command that must succeed and prints JSON.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let mut arguments = arguments.to_vec();
        arguments.extend(["-output", "json"]);
        let said = self.ask(&arguments).good();
        serde_json::from_str(&said).unwrap_or_else(|_| panic!("no JSON: {said}"))
    }

    /// The SPIFFE ID with this path.
    pub fn id(&self, path: &str) -> String {
        format!("spiffe://{}{path}", self.domain)
    }

    /// Registers a workload of the agent; `more` are further arguments of `entry create`. The entry's ID.
    pub fn register(&self, path: &str, selectors: &[String], more: &[&str]) -> String {
        let (id, parent) = (self.id(path), self.id(NODE));
        let mut arguments = vec!["entry", "create", "-spiffeID", &id, "-parentID", &parent];
        for selector in selectors {
            arguments.extend(["-selector", selector]);
        }
        arguments.extend(more);
        let made = self.json(&arguments);
        let entry = made.pointer("/results/0/entry/id").and_then(Value::as_str);
        entry.unwrap_or_else(|| panic!("no entry: {made}")).to_owned()
    }

    pub fn delete(&self, entry: &str) {
        self.json(&["entry", "delete", "-entryID", entry]);
    }

    /// The trust domain's bundle: `pem` or `spiffe`.
    pub fn bundle(&self, format: &str) -> String {
        self.ask(&["bundle", "show", "-format", format]).good()
    }

    /// Takes another trust domain's bundle, as an operator hands it over.
    pub fn trust(&self, other: &Self) {
        let file = self.folder.join(format!("{}.json", other.domain));
        std::fs::write(&file, other.bundle("spiffe")).unwrap();
        let (id, file) = (other.id(""), file.display().to_string());
        self.ask(&["bundle", "set", "-format", "spiffe", "-id", &id, "-path", &file]).good();
    }

    /// Asks the other's bundle endpoint now instead of in its time, which is a quarter of a minute at the soonest.
    pub fn refresh(&self, other: &Self) {
        self.ask(&["federation", "refresh", "-id", &other.id("")]).good();
    }

    /// Another X.509 authority signs from now on; the IDs of the old one and the new one.
    pub fn rotate_authority(&self) -> (String, String) {
        let id_in = |answer: &Value, name: &str| {
            let id = answer.pointer(&format!("/{name}/authority_id")).and_then(Value::as_str);
            id.unwrap_or_else(|| panic!("no authority: {answer}")).to_owned()
        };
        let old = id_in(&self.json(&["localauthority", "x509", "show"]), "active");
        let prepared = self.json(&["localauthority", "x509", "prepare"]);
        let new = id_in(&prepared, "prepared_authority");
        self.json(&["localauthority", "x509", "activate", "-authorityID", &new]);
        (old, new)
    }

    /// Tells the agents to have their SVIDs signed anew by another authority than this one.
    pub fn taint(&self, authority: &str) {
        self.json(&["localauthority", "x509", "taint", "-authorityID", authority]);
    }

    /// Takes this authority out of the bundle.
    pub fn revoke(&self, authority: &str) {
        self.json(&["localauthority", "x509", "revoke", "-authorityID", authority]);
    }

    /// An SVID without attestation, signed by the active authority; a folder with svid.pem, key.pem and bundle.pem.
    pub fn mint(&self, path: &str) -> PathBuf {
        let folder = self.folder.join(format!("minted{}", path.replace('/', "-")));
        std::fs::create_dir_all(&folder).unwrap();
        let (id, out) = (self.id(path), folder.display().to_string());
        self.ask(&["x509", "mint", "-spiffeID", &id, "-ttl", "1h", "-write", &out]).good();
        folder
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.take());
        if std::thread::panicking() {
            eprintln!("SPIRE's folder is kept: {}", self.folder.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// A spire-agent that attests workloads by user and program.
pub struct Agent {
    programs: PathBuf,
    folder: PathBuf,
    process: Option<Process>,
}

impl Agent {
    pub fn start(server: &Server) -> Self {
        let (domain, port) = (&server.domain, server.port);
        let folder = server.folder.clone();
        let here = folder.display();
        let sees_programs = sees_programs();
        let configuration = format!(
            r#"
agent {{
    data_dir = "{here}/agent"
    log_level = "INFO"
    server_address = "127.0.0.1"
    server_port = "{port}"
    socket_path = "{here}/workload/api.sock"
    trust_bundle_path = "{here}/bootstrap.pem"
    trust_domain = "{domain}"
    experimental {{
        sync_interval = "250ms"
    }}
}}
plugins {{
    NodeAttestor "join_token" {{
        plugin_data {{}}
    }}
    KeyManager "disk" {{
        plugin_data {{
            directory = "{here}/agent"
        }}
    }}
    WorkloadAttestor "unix" {{
        plugin_data {{
            discover_workload_path = {sees_programs}
        }}
    }}
}}
"#
        );
        std::fs::create_dir_all(folder.join("agent")).unwrap();
        std::fs::write(folder.join("agent.conf"), configuration).unwrap();
        std::fs::write(folder.join("bootstrap.pem"), server.bundle("pem")).unwrap();
        let token = server.json(&["token", "generate", "-spiffeID", &server.id(NODE)]);
        let token = token["value"].as_str().unwrap_or_else(|| panic!("no token: {token}"));
        let programs = server.programs.clone();
        let mut agent = Self { programs, folder, process: None };
        agent.run(&["-joinToken", token]);
        agent
    }

    /// Runs it again: it has its own identity on disk and needs no token any more.
    pub fn resume(&mut self) {
        self.run(&[]);
    }

    fn run(&mut self, more: &[&str]) {
        let mut command = Command::new(self.programs.join("spire-agent"));
        command.args(["run", "-config"]).arg(self.folder.join("agent.conf")).args(more);
        self.process = Some(Process::launch("spire-agent", command, &self.folder));
        let socket = self.socket();
        eventually("the agent's Workload API", || UnixStream::connect(&socket).ok());
    }

    /// Ends it as an operator does.
    pub fn stop(&mut self) {
        self.process.take().unwrap().end();
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.join("workload/api.sock")
    }

    /// What go-spiffe, py-spiffe and all others read from SPIFFE_ENDPOINT_SOCKET.
    pub fn address(&self) -> String {
        format!("unix:{}", self.socket().display())
    }
}

/// A Wardgate process that takes its identity from an agent.
pub trait OnSpire {
    /// With the identity of this path, which is registered or will be.
    fn on(self, spire: &Spire, path: &str) -> Self;
}

impl OnSpire for Part<'_> {
    fn on(self, spire: &Spire, path: &str) -> Self {
        let source = json!({
            "source": "workload_api",
            "socket": spire.agent.address(),
            "spiffe_id": spire.server.id(path),
            "first_within_seconds": 25,
        });
        self.set("identity", &source)
    }
}

/// A copy of Wardgate's binary for one workload, by which attestation tells it from others.
pub fn program_of(world: &World, path: &str) -> PathBuf {
    let folder = world.folder.join("bin");
    std::fs::create_dir_all(&folder).unwrap();
    let program = folder.join(path.replace('/', "-"));
    let binary = env!("CARGO_BIN_EXE_wardgate");
    if !program.exists() && std::fs::hard_link(binary, &program).is_err() {
        std::fs::copy(binary, &program).unwrap();
    }
    program
}

/// May an agent of ours look at a workload's program? Only root's can look into a process that forbids core dumps.
pub fn sees_programs() -> bool {
    rustix::process::geteuid().is_root()
}

/// Our user, and the program where the agent sees it.
pub fn selectors_of(program: &Path) -> Vec<String> {
    let mut selectors = vec![format!("unix:uid:{}", rustix::process::geteuid().as_raw())];
    if sees_programs() {
        let program = std::fs::canonicalize(program).unwrap();
        selectors.push(format!("unix:path:{}", program.display()));
    }
    selectors
}
