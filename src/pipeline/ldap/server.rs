//! `Server`: one directory, and the connections to it that wait for their next question.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::error::Error;
use super::link::{Link, Unanswered};
use super::message::Request;

/// How a directory is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Access {
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether and how the connection is secured.
    pub tls: Option<Tls>,
    /// The directory's certificate must be one that the system trusts, with the host's name.
    pub verify: bool,
    /// From connecting to the last answer.
    pub within: Duration,
    /// How long a connection may wait for its next question, and how many may; none is kept without.
    pub keep: Option<(Duration, usize)>,
}

impl Access {
    /// Host and port, for logs.
    pub fn name(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

/// How a connection is secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tls {
    /// From its first byte (`ldaps`).
    First,
    /// By StartTLS, before anything else.
    Started,
}

/// Whom to look for.
#[derive(Clone, Copy, Debug)]
pub struct Search<'a> {
    /// Who looks: a name and its password; nobody without.
    pub by: Option<(&'a str, &'a str)>,
    /// Below which entry.
    pub base: &'a str,
    /// The attribute that says who it is.
    pub attribute: &'a str,
    /// What it must equal.
    pub value: &'a str,
    /// How many entries the directory gives at most; with more than one there is nobody.
    pub entries: u32,
    /// How many seconds it looks; 0: as long as it likes.
    pub seconds: u32,
}

/// What became of a name and a password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// They are good; the entry's name, as the directory writes it.
    Known(String),
    /// They are not, or belong to nobody, or to several.
    Nobody,
}

/// One directory.
#[derive(Debug)]
pub struct Server {
    access: Access,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    link: Link,
    until: Instant,
}

impl std::fmt::Debug for Idle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Idle")
    }
}

/// What is asked.
enum Question<'a> {
    /// Binds with this name.
    Bind { name: &'a str, password: &'a [u8] },
    /// Searches, and binds as what was found.
    Find { search: Search<'a>, password: &'a [u8] },
}

const SUCCESS: u32 = 0;
const SIZE_LIMIT_EXCEEDED: u32 = 4;
const INVALID_DN: u32 = 34;
const INVALID_CREDENTIALS: u32 = 49;

/// Why a question has no answer.
enum Failed {
    Link(Unanswered),
    Refused { step: &'static str, code: u32 },
}

impl From<Unanswered> for Failed {
    fn from(why: Unanswered) -> Self {
        Self::Link(why)
    }
}

impl Server {
    /// The directory. Nothing is connected yet.
    pub fn new(access: Access) -> Self {
        Self { access, idle: Mutex::default() }
    }

    /// Host and port, for logs.
    pub fn name(&self) -> String {
        self.access.name()
    }

    /// Tries a name and a password.
    ///
    /// # Errors
    /// The directory cannot say.
    pub async fn bind(&self, name: &str, password: &[u8]) -> Result<Found, Error> {
        // A name without a password binds nobody, and succeeds (RFC 4513, section 5.1.2).
        if name.is_empty() || password.is_empty() {
            return Ok(Found::Nobody);
        }
        self.ask(&Question::Bind { name, password }).await
    }

    /// Looks for the entry of a user, and tries the password with it.
    ///
    /// # Errors
    /// The directory cannot say, or refuses to search.
    pub async fn find(&self, search: Search<'_>, password: &[u8]) -> Result<Found, Error> {
        if search.value.is_empty() || password.is_empty() {
            return Ok(Found::Nobody);
        }
        self.ask(&Question::Find { search, password }).await
    }

    async fn ask(&self, question: &Question<'_>) -> Result<Found, Error> {
        let within = self.access.within;
        match tokio::time::timeout(within, self.answer(question)).await {
            Ok(answered) => answered,
            Err(_) => Err(Error::Late { server: self.name(), within }),
        }
    }

    async fn answer(&self, question: &Question<'_>) -> Result<Found, Error> {
        let failed = |why: Failed| match why {
            Failed::Link(why) => why.of(&self.name()),
            Failed::Refused { step, code } => Error::Refused { server: self.name(), step, code },
        };
        if let Some(mut kept) = self.kept() {
            match question.ask(&mut kept).await {
                Ok(found) => {
                    self.keep(kept);
                    return Ok(found);
                }
                // It was closed while nobody looked; others that wait will be closed, too. To ask again changes nothing.
                Err(Failed::Link(Unanswered::Io(_))) => self.idle.lock().clear(),
                Err(why) => return Err(failed(why)),
            }
        }
        let mut fresh = Link::open(&self.access).await?;
        let found = question.ask(&mut fresh).await.map_err(failed)?;
        self.keep(fresh);
        Ok(found)
    }

    fn kept(&self) -> Option<Link> {
        let mut idle = self.idle.lock();
        let now = Instant::now();
        idle.retain(|one| one.until > now);
        idle.pop().map(|idle| idle.link)
    }

    fn keep(&self, link: Link) {
        let Some((time, most)) = self.access.keep else { return };
        let mut idle = self.idle.lock();
        if idle.len() < most {
            idle.push(Idle { link, until: Instant::now() + time });
        }
    }
}

impl Question<'_> {
    async fn ask(&self, link: &mut Link) -> Result<Found, Failed> {
        match self {
            Self::Bind { name, password } => bound(link, (*name).to_owned(), password).await,
            Self::Find { search, password } => {
                // Always: on a connection that was used before somebody else is bound.
                let (name, secret) = search.by.unwrap_or_default();
                match link.bind(name, secret.as_bytes()).await? {
                    SUCCESS => {}
                    code => return Err(Failed::Refused { step: "who searches", code }),
                }
                let request = Request::Search {
                    base: search.base,
                    attribute: search.attribute,
                    value: search.value.as_bytes(),
                    entries: search.entries,
                    seconds: search.seconds,
                };
                let (mut names, code) = link.search(&request).await?;
                if !matches!(code, SUCCESS | SIZE_LIMIT_EXCEEDED) {
                    return Err(Failed::Refused { step: "the search", code });
                }
                match (names.pop(), names.is_empty()) {
                    // An entry without a name would bind nobody, and succeed.
                    (Some(name), true) if code == SUCCESS && !name.is_empty() => {
                        bound(link, name, password).await
                    }
                    _ => Ok(Found::Nobody),
                }
            }
        }
    }
}

async fn bound(link: &mut Link, name: String, password: &[u8]) -> Result<Found, Failed> {
    match link.bind(&name, password).await? {
        SUCCESS => Ok(Found::Known(name)),
        INVALID_CREDENTIALS | INVALID_DN => Ok(Found::Nobody),
        code => Err(Failed::Refused { step: "the user", code }),
    }
}
