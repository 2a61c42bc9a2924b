//! A real Redis for one test: Debian's binary, free ports, a folder of its own.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A running Redis, killed and cleaned away at the end.
pub struct RedisServer {
    child: Option<Child>,
    folder: PathBuf,
    pub port: u16,
    arguments: Vec<String>,
}

const PATIENCE: Duration = Duration::from_secs(60);

impl RedisServer {
    /// Starts Redis and waits until it answers.
    pub fn start(arguments: &[&str]) -> Self {
        let folder = std::env::temp_dir().join(format!("wardgate-redis-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&folder).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let mut server = Self { child: None, folder, port, arguments };
        server.resume();
        server
    }

    /// A sentinel that watches `master` under the name `mymaster`.
    pub fn sentinel(master: &Self) -> Self {
        let folder = std::env::temp_dir().join(format!("wardgate-redis-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&folder).unwrap();
        let watches = format!("sentinel monitor mymaster 127.0.0.1 {} 1\n", master.port);
        std::fs::write(folder.join("sentinel.conf"), watches).unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut server = Self { child: None, folder, port, arguments: vec!["--sentinel".into()] };
        server.resume();
        server
    }

    /// Starts it again where it was.
    pub fn resume(&mut self) {
        let mut command = Command::new("redis-server");
        let file = self.folder.join("sentinel.conf");
        match file.exists() {
            true => command.arg(&file),
            false => command.args(["--save", "", "--appendonly", "no"]),
        };
        let child = command
            .args(["--port", &self.port.to_string(), "--bind", "127.0.0.1"])
            .args(["--loglevel", "warning"])
            .args(["--dir", self.folder.to_str().unwrap()])
            .args(&self.arguments)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("redis is needed by this test: apt-get install redis-server");
        self.child = Some(child);
        let since = Instant::now();
        while self.try_ask("PING").is_none() {
            assert!(since.elapsed() < PATIENCE, "Redis does not come up");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Kills it.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// It hears everything and answers nothing.
    pub fn freeze(&self) {
        self.signal(rustix::process::Signal::STOP);
    }

    pub fn thaw(&self) {
        self.signal(rustix::process::Signal::CONT);
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let child = self.child.as_ref().expect("it runs");
        let pid = rustix::process::Pid::from_child(child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// The first line of the answer to a command in one line.
    pub fn ask(&self, command: &str) -> String {
        self.try_ask(command).unwrap_or_else(|| panic!("no answer to {command}"))
    }

    fn try_ask(&self, command: &str) -> Option<String> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(format!("{command}\r\n").as_bytes()).ok()?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).ok().filter(|read| *read > 0)?;
        Some(line.trim_end().to_owned())
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
