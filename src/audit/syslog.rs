//! Output `syslog`: RFC 5424 over TLS (RFC 5425), over TCP, or to a socket of this machine.
//!
//! The protocol has no acknowledgement. What was written into a connection that the other side then closes may not have been
//! read: what went out in the last seconds before that is sent once more on the next connection.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, ReadHalf, WriteHalf};
use tokio::net::UnixDatagram;
use tokio::time::Instant;

use super::destination::{Destination, Line, Undelivered};
use super::mapping::{Format, Here, Severity, syslog};
use super::remote::{Basis, Remote, Stream};
use super::settings::{OutputTls, SyslogSettings};
use crate::identity::Identity;
use crate::mtls::Alpn;
use crate::rt::{Live, Tasks};

/// What was sent in so long before the other side closed is sent again.
const DOUBT: Duration = Duration::from_secs(10);
/// Bytes of that which are kept.
const KEPT: usize = 4 << 20;

/// Syslog's facility.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Facility {
    /// 1.
    User,
    /// 3.
    Daemon,
    /// 4.
    Auth,
    /// 10.
    Authpriv,
    /// 13: log audit.
    #[default]
    Audit,
    /// 16.
    Local0,
    /// 17.
    Local1,
    /// 18.
    Local2,
    /// 19.
    Local3,
    /// 20.
    Local4,
    /// 21.
    Local5,
    /// 22.
    Local6,
    /// 23.
    Local7,
}

impl Facility {
    const fn number(self) -> u8 {
        match self {
            Self::User => 1,
            Self::Daemon => 3,
            Self::Auth => 4,
            Self::Authpriv => 10,
            Self::Audit => 13,
            Self::Local0 => 16,
            Self::Local1 => 17,
            Self::Local2 => 18,
            Self::Local3 => 19,
            Self::Local4 => 20,
            Self::Local5 => 21,
            Self::Local6 => 22,
            Self::Local7 => 23,
        }
    }
}

const fn severity_number(severity: Severity) -> u8 {
    match severity {
        Severity::Informational => 6,
        Severity::Notice => 5,
        Severity::Warning => 4,
        Severity::Error => 3,
        Severity::Critical => 2,
    }
}

/// Sends messages.
pub(super) struct SyslogOutput {
    name: String,
    format: Format,
    here: Here,
    words: Words,
    carrier: Carrier,
}

/// What stands in every message.
struct Words {
    facility: Facility,
    /// ` HOSTNAME APP-NAME PROCID `, as it stands in messages.
    origin: String,
    sd_id: String,
}

enum Carrier {
    Stream { remote: Remote, open: Option<Open>, sent: VecDeque<(Instant, Vec<u8>)> },
    Socket { path: PathBuf },
}

/// A connection, and when the other side has closed it.
struct Open {
    writer: WriteHalf<Box<dyn Stream>>,
    basis: Basis,
    closed: Arc<Mutex<Option<Instant>>>,
    _watch: Tasks,
}

impl SyslogOutput {
    /// # Errors
    /// The settings cannot be; the sentence names the field.
    pub(super) fn new(
        name: &str,
        format: Format,
        here: &Here,
        settings: &SyslogSettings,
        identity: Option<&Live<Identity>>,
    ) -> Result<Self, String> {
        let hostname = settings.hostname.as_deref().or(here.node.as_deref()).unwrap_or("-");
        let printable = |field: &str, text: &str, longest: usize| {
            let fits = (1..=longest).contains(&text.len());
            match fits && text.bytes().all(|byte| (33..=126).contains(&byte)) {
                true => Ok(()),
                false => {
                    let expected = format!("expected 1 to {longest} printable ASCII characters");
                    Err(format!("syslog.{field}: {text:?}; {expected}"))
                }
            }
        };
        printable("hostname", hostname, 255)?;
        printable("app_name", &settings.app_name, 48)?;
        printable("sd_id", &settings.sd_id, 32)?;
        if settings.sd_id.contains(['=', ']', '"']) {
            return Err(format!("syslog.sd_id: {:?}; = ] and \" cannot be", settings.sd_id));
        }
        let origin = format!(" {hostname} {} {} ", settings.app_name, std::process::id());
        let words = Words { facility: settings.facility, origin, sd_id: settings.sd_id.clone() };
        let carrier = carrier(settings, identity)?;
        Ok(Self { name: name.to_owned(), format, here: here.clone(), words, carrier })
    }

    /// The message of one record.
    fn message(&self, line: &Line) -> Result<String, serde_json::Error> {
        let record: Value = serde_json::from_str(&line.text)?;
        let severity = severity_number(Severity::of(&record));
        let priority = u16::from(self.words.facility.number()) * 8 + u16::from(severity);
        let field = |name: &str| record[name].as_str().unwrap_or("-");
        let (time, kind) = (field("time"), field("type"));
        let mut out =
            format!("<{priority}>1 {time}{}{kind} [{}", self.words.origin, self.words.sd_id);
        for (name, value) in syslog(&record, &self.here).as_object().into_iter().flatten() {
            let text = match value {
                Value::String(text) => text.clone(),
                other => other.to_string(),
            };
            out.push(' ');
            out.push_str(name);
            out.push_str("=\"");
            escape(&text, &mut out);
            out.push('"');
        }
        out.push_str("] ");
        out.push_str(&self.format.tell(&line.text, &self.here)?);
        Ok(out)
    }
}

/// RFC 5424, section 6.3.3; characters that would move a terminal's cursor are none of a value's.
fn escape(text: &str, out: &mut String) {
    for character in text.chars() {
        if matches!(character, '"' | '\\' | ']') {
            out.push('\\');
        }
        out.push(if character.is_control() { char::REPLACEMENT_CHARACTER } else { character });
    }
}

fn carrier(
    settings: &SyslogSettings,
    identity: Option<&Live<Identity>>,
) -> Result<Carrier, String> {
    let address = &settings.address;
    let wrong = || {
        let expected = "expected tls://host:port, tcp://host:port or unix:///path";
        format!("syslog.address: {address:?}; {expected}")
    };
    let (scheme, rest) = address.split_once("://").ok_or_else(wrong)?;
    if scheme != "tls" && settings.tls != OutputTls::default() {
        return Err(format!("syslog.tls: the address is {scheme}://"));
    }
    let usual = match scheme {
        "tls" => 6514,
        "tcp" => 601,
        "unix" if rest.starts_with('/') => return Ok(Carrier::Socket { path: rest.into() }),
        _ => return Err(wrong()),
    };
    let authority: http::uri::Authority = rest.parse().map_err(|_| wrong())?;
    if authority.as_str().contains('@') {
        return Err(wrong());
    }
    let port = authority.port_u16().unwrap_or(usual);
    let tls = (scheme == "tls").then_some(&settings.tls);
    let remote = Remote::new(authority.host(), port, tls, identity);
    let remote = remote.map_err(|why| format!("syslog.{why}"))?;
    Ok(Carrier::Stream { remote, open: None, sent: VecDeque::new() })
}

#[async_trait]
impl Destination for SyslogOutput {
    fn name(&self) -> &str {
        &self.name
    }

    async fn deliver(&mut self, records: &[Line]) -> Result<(), Undelivered> {
        let mut messages = Vec::with_capacity(records.len());
        let mut unreadable = None;
        for record in records {
            match self.message(record) {
                Ok(message) => messages.push(message),
                Err(error) => {
                    unreadable = Some((record.seq, error.to_string()));
                    break;
                }
            }
        }
        match &mut self.carrier {
            Carrier::Stream { remote, open, sent } => {
                let mut frames = Vec::new();
                for message in &messages {
                    frames.extend_from_slice(format!("{} ", message.len()).as_bytes());
                    frames.extend_from_slice(message.as_bytes());
                }
                send(remote, open, sent, frames).await.map_err(Undelivered::Later)?;
            }
            Carrier::Socket { path } => {
                let told =
                    |error: io::Error| Undelivered::Later(format!("{}: {error}", path.display()));
                let socket = UnixDatagram::unbound().map_err(told)?;
                for (message, record) in messages.iter().zip(records) {
                    match socket.send_to(message.as_bytes(), &*path).await {
                        Ok(_) => {}
                        Err(error) if error.raw_os_error() == Some(TOO_LONG) => {
                            let why = format!("{} bytes are too long for it", message.len());
                            return Err(Undelivered::Never { seq: record.seq, why });
                        }
                        Err(error) => return Err(told(error)),
                    }
                }
            }
        }
        match unreadable {
            None => Ok(()),
            Some((seq, why)) => Err(Undelivered::Never { seq, why }),
        }
    }
}

/// `EMSGSIZE`.
const TOO_LONG: i32 = rustix::io::Errno::MSGSIZE.raw_os_error();

/// Sends frames, and before them those of the connection before that the other side may not have read.
async fn send(
    remote: &Remote,
    open: &mut Option<Open>,
    sent: &mut VecDeque<(Instant, Vec<u8>)>,
    frames: Vec<u8>,
) -> Result<(), String> {
    let kept = open.take();
    let ended = match &kept {
        Some(one) => *one.closed.lock(),
        // Broken off while something was written, or the first one: nothing is known of what was sent.
        None => sent.back().map(|(at, _)| *at),
    };
    let mut connection = match kept {
        Some(one) if ended.is_none() && remote.holds(one.basis) => one,
        closed => {
            if let Some(ended) = ended {
                sent.retain(|(at, _)| *at + DOUBT >= ended);
            } else {
                sent.clear();
            }
            drop(closed);
            let mut fresh = Open::to(remote).await?;
            for (_, frames) in &*sent {
                fresh.write(frames).await?;
            }
            fresh
        }
    };
    let outcome = connection.write(&frames).await;
    let now = Instant::now();
    while sent.front().is_some_and(|(at, _)| *at + DOUBT < now)
        || sent.iter().map(|(_, frames)| frames.len()).sum::<usize>() > KEPT
    {
        sent.pop_front();
    }
    outcome?;
    sent.push_back((now, frames));
    *open = Some(connection);
    Ok(())
}

impl Open {
    async fn to(remote: &Remote) -> Result<Self, String> {
        let (stream, basis) = remote.connect(Alpn::None).await?;
        let (reader, writer) = tokio::io::split(stream);
        let closed = Arc::<Mutex<Option<Instant>>>::default();
        let mut watch = Tasks::new();
        watch.add(notice_the_end(reader, closed.clone()));
        Ok(Self { writer, basis, closed, _watch: watch })
    }

    async fn write(&mut self, frames: &[u8]) -> Result<(), String> {
        let writing = async {
            self.writer.write_all(frames).await?;
            self.writer.flush().await
        };
        writing.await.map_err(|error| error.to_string())
    }
}

/// Nobody says anything here but that it is over.
async fn notice_the_end(
    mut reader: ReadHalf<Box<dyn Stream>>,
    closed: Arc<Mutex<Option<Instant>>>,
) {
    let mut nothing = [0; 256];
    while let Ok(1..) = reader.read(&mut nothing).await {}
    *closed.lock() = Some(Instant::now());
}
