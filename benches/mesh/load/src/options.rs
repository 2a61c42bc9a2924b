//! The command line.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

pub struct Options {
    pub verb: String,
    given: HashMap<String, String>,
}

/// Client side of mTLS: `<folder>/<name>.pem`, `.key`, `bundle.pem`, and the name that the server must prove.
pub struct Tls {
    pub folder: PathBuf,
    pub client: String,
    pub server: String,
}

impl Options {
    pub fn from_arguments() -> Result<Self, String> {
        let mut words = std::env::args().skip(1);
        let verb = words.next().ok_or("say what to do: keep, fresh, rate, idle, grpc, relay")?;
        let mut given = HashMap::new();
        while let Some(word) = words.next() {
            let name = word.strip_prefix("--").ok_or(format!("expected --NAME, found {word}"))?;
            let value = words.next().ok_or(format!("--{name} needs a value"))?;
            given.insert(name.to_owned(), value);
        }
        Ok(Self { verb, given })
    }

    fn number<T: FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        self.given.get(name).map_or(Ok(default), |text| {
            text.parse().map_err(|_| format!("--{name}: no such number: {text}"))
        })
    }

    fn address(&self, name: &str) -> Result<SocketAddr, String> {
        let text = self.given.get(name).ok_or(format!("--{name} is missing"))?;
        text.parse().map_err(|_| format!("--{name}: expected address:port, found {text}"))
    }

    pub fn to(&self) -> Result<SocketAddr, String> {
        self.address("to")
    }

    pub fn listen(&self) -> Result<SocketAddr, String> {
        self.address("listen")
    }

    pub fn path(&self) -> &str {
        self.given.get("path").map_or("/bench", String::as_str)
    }

    pub fn host(&self) -> &str {
        self.given.get("host").map_or("bench.local", String::as_str)
    }

    /// Bytes that each answer must have.
    pub fn size(&self) -> Result<u64, String> {
        self.number("size", 1024)
    }

    pub fn connections(&self) -> Result<usize, String> {
        self.number("connections", 32)
    }

    /// Requests per second.
    pub fn rate(&self) -> Result<u32, String> {
        self.number("rate", 1000)
    }

    pub fn lasting(&self) -> Result<Duration, String> {
        Ok(Duration::from_secs_f64(self.number("seconds", 3.0)?))
    }

    pub fn warming(&self) -> Result<Duration, String> {
        Ok(Duration::from_secs_f64(self.number("warm", 0.5)?))
    }

    /// Stop after so many requests of each connection; by time when not given.
    pub fn requests(&self) -> Result<Option<u64>, String> {
        Ok(Some(self.number("requests", 0)?).filter(|count| *count > 0))
    }

    pub fn tls(&self) -> Option<Tls> {
        let folder = self.given.get("certificates")?.into();
        let name = |key: &str, default: &str| self.given.get(key).map_or(default, String::as_str).to_owned();
        Some(Tls { folder, client: name("client", "shop"), server: name("server", "billing.bench.local") })
    }
}
