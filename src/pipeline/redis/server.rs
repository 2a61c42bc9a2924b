//! `Server`: one Redis server, and the connections to it that wait for their next question.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::answer::{Answer, Unread};
use super::error::Error;
use super::link::Link;
use crate::model::Redacted;

/// How servers are reached.
#[derive(Clone, Debug)]
pub struct Access {
    /// The user; the default one when not given.
    pub user: Option<String>,
    /// The password.
    pub password: Option<Redacted<String>>,
    /// The number of the database.
    pub database: u32,
    /// TLS, and whether the server's certificate is verified.
    pub tls: Option<bool>,
    /// From connecting, or from the question, to the answer.
    pub within: Duration,
    /// How long a connection may wait for its next question.
    pub keep: Duration,
    /// How many may wait.
    pub most: usize,
}

/// One server.
#[derive(Debug)]
pub struct Server {
    host: String,
    port: u16,
    access: Access,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    link: Link,
    since: Instant,
}

impl std::fmt::Debug for Idle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Idle")
    }
}

impl Server {
    /// The server at this place. Nothing is connected yet.
    pub fn new(host: impl Into<String>, port: u16, access: Access) -> Self {
        Self { host: host.into(), port, access, idle: Mutex::default() }
    }

    /// Host and port, for logs.
    pub fn name(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// Asks, within the time that there is.
    pub(super) async fn ask(&self, parts: &[&[u8]]) -> Result<Answer, Error> {
        self.ask_first(None, parts).await
    }

    /// The same on a connection on which `first` was asked just before.
    pub(super) async fn ask_first(
        &self,
        first: Option<&[&[u8]]>,
        parts: &[&[u8]],
    ) -> Result<Answer, Error> {
        let within = self.access.within;
        match tokio::time::timeout(within, self.exchange(first, parts)).await {
            Ok(Ok(Answer::Refusal(words))) => Err(Error::Refused { server: self.name(), words }),
            Ok(answered) => answered,
            Err(_) => Err(Error::Late { server: self.name(), within }),
        }
    }

    async fn exchange(&self, first: Option<&[&[u8]]>, parts: &[&[u8]]) -> Result<Answer, Error> {
        if let Some(mut kept) = self.kept() {
            match both(&mut kept, first, parts).await {
                Ok(answer) => {
                    self.keep(kept);
                    return Ok(answer);
                }
                // It was closed while nobody looked, and nobody has heard the question: others that wait will be closed, too.
                Err(Unread::Io(_)) => self.idle.lock().clear(),
                Err(why) => return Err(why.of(&self.name())),
            }
        }
        let mut fresh = Link::open(&self.host, self.port, &self.access).await?;
        let answer = both(&mut fresh, first, parts).await.map_err(|why| why.of(&self.name()))?;
        self.keep(fresh);
        Ok(answer)
    }

    fn kept(&self) -> Option<Link> {
        let mut idle = self.idle.lock();
        // The one that was used last is the likeliest to stand; those at the front have waited longest.
        let late = idle.iter().take_while(|one| one.since.elapsed() >= self.access.keep).count();
        idle.drain(..late);
        idle.pop().map(|idle| idle.link)
    }

    fn keep(&self, link: Link) {
        let mut idle = self.idle.lock();
        if idle.len() < self.access.most {
            idle.push(Idle { link, since: Instant::now() });
        }
    }
}

async fn both(link: &mut Link, first: Option<&[&[u8]]>, parts: &[&[u8]]) -> Result<Answer, Unread> {
    if let Some(first) = first {
        link.ask(first).await?;
    }
    link.ask(parts).await
}
