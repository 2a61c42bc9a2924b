//! A real etcd for one test: Debian's binary, free ports, a folder of its own.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running etcd, killed and cleaned away at the end.
pub struct EtcdServer {
    child: Option<Child>,
    pub folder: PathBuf,
    port: u16,
    peer_port: u16,
    arguments: Vec<String>,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

pub fn new_folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("wardgate-{name}-{}", uuid::Uuid::new_v4()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

impl EtcdServer {
    /// Starts etcd and waits until it answers.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    pub fn start_with(arguments: &[&str]) -> Self {
        let mut server = Self::stopped();
        server.arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        server.resume();
        server
    }

    /// An etcd that has its address and does not run yet.
    pub fn stopped() -> Self {
        Self {
            child: None,
            folder: new_folder("etcd"),
            port: free_port(),
            peer_port: free_port(),
            arguments: Vec::new(),
        }
    }

    /// For the next start.
    pub fn add_argument(&mut self, argument: &str) {
        self.arguments.push(argument.to_owned());
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Members of one cluster, all running.
    pub fn cluster(size: usize) -> Vec<Self> {
        let mut members: Vec<Self> = (0..size).map(|_| Self::stopped()).collect();
        let peer = |(number, member): (usize, &Self)| {
            format!("m{number}=http://127.0.0.1:{}", member.peer_port)
        };
        let all = members.iter().enumerate().map(peer).collect::<Vec<_>>().join(",");
        for (number, member) in members.iter_mut().enumerate() {
            let cluster = format!("--initial-cluster={all}");
            member.arguments = vec![format!("--name=m{number}"), cluster];
            // A member that died is missed soon.
            member
                .arguments
                .extend(["--heartbeat-interval=50", "--election-timeout=500"].map(String::from));
            member.spawn();
        }
        members.iter().for_each(Self::wait_ready);
        members
    }

    /// Stops the process where it stands: its sockets are open, and nobody answers.
    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    /// Lets it go on.
    pub fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().expect("it runs");
        rustix::process::kill_process(rustix::process::Pid::from_child(child), signal).unwrap();
    }

    /// Runs it (again) on the same address and folder.
    pub fn resume(&mut self) {
        self.spawn();
        self.wait_ready();
    }

    fn spawn(&mut self) {
        let log = std::fs::File::create(self.folder.join("log")).unwrap();
        let secure = self.arguments.iter().any(|argument| argument.starts_with("--cert-file"));
        let scheme = if secure { "https" } else { "http" };
        let client = format!("{scheme}://127.0.0.1:{}", self.port);
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let child = Command::new("etcd")
            .args(["--data-dir", self.folder.join("data").to_str().unwrap()])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("etcd is needed by this test: apt-get install etcd-server");
        self.child = Some(child);
    }

    fn wait_ready(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !std::fs::read_to_string(self.folder.join("log"))
            .unwrap_or_default()
            .contains("ready to serve client requests")
        {
            let log = || std::fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "etcd does not start: {}", log());
            std::thread::yield_now();
            #[expect(clippy::disallowed_methods, reason = "a test waits for another process")]
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for EtcdServer {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
