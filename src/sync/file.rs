//! A resources file as a feed: APISIX's `apisix.yaml`, or the same shape as JSON, read again whenever it changes.
//!
//! ```yaml
//! routes:
//!   - id: hello
//!     uri: /hello
//!     upstream:
//!       nodes: { "127.0.0.1:8080": 1 }
//! consumers:
//!   - username: john
//!   - id: john/credentials/first
//!     plugins: { key-auth: { key: "${{JOHNS_KEY}}" } }
//! #END
//! ```
//!
//! - The top level has the kinds, each with a list. `#END` in the last line says that a YAML file is whole; a file that is just
//!   being written is read again a second later. JSON needs no such line.
//! - Consumers are named by `username`, all others by `id`; without one they are `<kind>-<place in the list>`. A credential's
//!   id is `<consumer>/credentials/<id>`, in the list of consumers as in APISIX, or in one of `credentials`.
//! - `${{NAME}}` in a text is the environment variable of that name, `${{NAME:=default}}` has a default. As in APISIX, a text
//!   that had a variable and then reads as a number, `true` or `false` is one.
//! - One item that cannot be used is left out with a warning that names it, and its version before stays in force. A whole file
//!   that cannot be read changes nothing.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use foldhash::fast::RandomState;
use serde_json::{Map, Value};
use tracing::{info, warn};

use super::delta::{Delta, Key, Version, Versions};
use super::{Applied, Batch, Feed};
use crate::model::{Body, Change, Id, Invalid, Kind, Rejected, Resource, Revision};
use crate::rt::{Live, Publisher, causes, substitute, unix_seconds};

/// How often the file is looked at. Its time and its inode, so that a replaced symbolic link (a Kubernetes ConfigMap) is seen.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Why a resources file cannot be used as a whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It cannot be read.
    #[error("cannot read the resources file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Its last line is not `#END`: it is not written to its end yet.
    #[error("the resources file {path} has no #END as its last line")]
    NoEnd {
        /// The file.
        path: PathBuf,
    },
    /// It is not YAML, or not JSON.
    #[error("the resources file {path} cannot be parsed: {why}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What the parser said, with line and column.
        why: String,
    },
    /// Its top level is not an object of lists.
    #[error("the resources file {path}: {field} must be {expected}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        field: String,
        /// What it must be.
        expected: &'static str,
    },
}

/// Where `${{NAME}}` comes from: [`process_environment`], or a table in a test.
pub type Environment = Arc<dyn Fn(&str) -> Option<String> + Send + Sync>;

/// The environment of this process.
pub fn process_environment() -> Environment {
    Arc::new(|name| std::env::var(name).ok())
}

/// How it stands with a resources file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileStatus {
    /// When what is in force was read, in seconds since 1970.
    pub read_at: i64,
    /// Why the file as it is now cannot be used; what was read before is in force. None when it could.
    pub error: Option<String>,
    /// Items of it that are left out, or in whose place the version before is in force.
    pub left_out: usize,
}

/// A resources file, followed.
pub struct FileFeed {
    path: PathBuf,
    environment: Environment,
    look_every: Duration,
    stamp: Option<Stamp>,
    has: Versions,
    /// What is in the file, cannot be read, and never could.
    unreadable: BTreeSet<Key>,
    /// What is in the file, cannot be read, and could be before.
    damaged: BTreeSet<Key>,
    revision: Revision,
    /// The first batch, until it was asked for.
    first: Option<Batch>,
    status: Publisher<FileStatus>,
}

/// What tells that a file is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    inode: u64,
    length: u64,
}

impl FileFeed {
    /// Reads the file, and follows it from here on. A name that ends with `.json` is JSON, every other one YAML.
    ///
    /// # Errors
    /// The file cannot be used as a whole. Later on that is a warning, and what was read before stays in force.
    pub fn open(path: impl Into<PathBuf>, environment: Environment) -> Result<Self, Error> {
        let path = path.into();
        let stamp = stamp(&path);
        let contents = read(&path, &environment)?;
        let mut feed = Self {
            status: Publisher::new(FileStatus::default()).0,
            path,
            environment,
            look_every: LOOK_EVERY,
            stamp,
            has: Versions::default(),
            unreadable: BTreeSet::new(),
            damaged: BTreeSet::new(),
            revision: 0,
            first: None,
        };
        feed.first = Some(Batch { complete: true, ..feed.batch(contents) });
        Ok(feed)
    }

    /// How it stands with the file, from now on.
    pub fn status(&self) -> Live<FileStatus> {
        self.status.live()
    }

    /// Looks at the file this often instead of each second.
    #[must_use]
    pub fn looking_every(mut self, look_every: Duration) -> Self {
        self.look_every = look_every;
        self
    }

    /// What differs between the file and what was read before.
    fn batch(&mut self, Contents { items, nameless }: Contents) -> Batch {
        let revision = self.revision + 1;
        let mut wanted = Versions::default();
        let (mut unreadable, mut damaged) = (BTreeSet::new(), BTreeSet::new());
        let mut bodies: BTreeMap<Key, Body> = BTreeMap::new();
        let mut batch = Batch::default();
        for Item { key, outcome, closed } in items {
            match outcome {
                Ok((fingerprint, body)) => {
                    // An item that says what it said has the revision that it had.
                    let known = self.has.get(&key).filter(|known| known.fingerprint == fingerprint);
                    let version = Version {
                        revision: known.map_or(revision, |known| known.revision),
                        fingerprint,
                    };
                    wanted.insert(key.clone(), version);
                    bodies.insert(key, body);
                }
                Err(Invalid(reason)) => {
                    let (kind, id) = key.clone();
                    if let Some(body) = closed.filter(|_| !self.has.contains_key(&key)) {
                        let id = id.clone();
                        batch.changes.push(Change::Put(Resource { kind, id, revision, body }));
                    }
                    batch.unreadable.push(Rejected { kind, id, revision, reason });
                    match self.has.get(&key) {
                        Some(before) => {
                            wanted.insert(key.clone(), *before);
                            damaged.insert(key);
                        }
                        None => drop(unreadable.insert(key)),
                    }
                }
            }
        }
        let delta = Delta::between(&self.has, &wanted);
        let gone = delta.deletes.into_iter().map(|(kind, id)| Change::Delete(kind, id));
        batch.changes.extend(gone);
        // Also of what could never be read the reader hears when it goes: something may stand in its place.
        let gone = self
            .unreadable
            .iter()
            .filter(|key| !unreadable.contains(*key) && !wanted.contains_key(*key));
        batch.changes.extend(gone.map(|(kind, id)| Change::Delete(*kind, id.clone())));
        // What was damaged and is as it was before it: the reader heard of the damage and must hear of its end.
        let repaired: Vec<(Key, Version)> = self
            .damaged
            .iter()
            .filter(|key| !damaged.contains(*key))
            .filter_map(|key| Some((key.clone(), *wanted.get(key)?)))
            .collect();
        for (key, version) in delta.puts.into_iter().chain(repaired) {
            if let Some(body) = bodies.remove(&key) {
                let (kind, id) = key;
                let resource = Resource { kind, id, revision: version.revision, body };
                batch.changes.push(Change::Put(resource));
            }
        }
        self.has = wanted;
        self.unreadable = unreadable;
        self.damaged = damaged;
        self.revision = revision;
        batch.revision = revision;
        let left_out = nameless + batch.unreadable.len();
        self.status.set(FileStatus { read_at: unix_seconds(), error: None, left_out });
        batch
    }
}

#[async_trait]
impl Feed for FileFeed {
    async fn next(&mut self) -> Batch {
        if let Some(first) = self.first.take() {
            return first;
        }
        loop {
            tokio::time::sleep(self.look_every).await;
            let (path, environment) = (self.path.clone(), self.environment.clone());
            let before = self.stamp;
            let look = tokio::task::spawn_blocking(move || {
                let now = stamp(&path);
                (now, (now != before).then(|| read(&path, &environment)))
            });
            // From here on nothing waits, so a call that is given up has noted nothing.
            let Ok((stamp, Some(outcome))) = look.await else { continue };
            self.stamp = stamp;
            match outcome {
                Ok(contents) => {
                    let batch = self.batch(contents);
                    info!(
                        file = %self.path.display(),
                        changes = batch.changes.len(),
                        skipped = batch.unreadable.len(),
                        "the resources file has changed"
                    );
                    return batch;
                }
                Err(error) => {
                    let cause = std::error::Error::source(&error).map(ToString::to_string);
                    warn!(%error, cause, "what was read before stays in force");
                    let why = causes(&error);
                    let before = self.status.live().load();
                    self.status.set(FileStatus { error: Some(why), ..(*before).clone() });
                }
            }
        }
    }

    fn applied(&mut self, applied: Applied) {
        for refusal in &applied.rejected {
            let Rejected { kind, id, reason, .. } = refusal;
            warn!(file = %self.path.display(), %kind, %id, reason, "a resource is refused");
        }
    }
}

fn stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::metadata(path).ok()?;
    Some(Stamp {
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        inode: metadata.ino(),
        length: metadata.len(),
    })
}

/// One item of the file that has a name.
struct Item {
    key: Key,
    outcome: Result<(u64, Body), Invalid>,
    /// What stands in its place when it cannot be read.
    closed: Option<Body>,
}

/// What a file says.
struct Contents {
    items: Vec<Item>,
    /// Items that have no name, or one that another has.
    nameless: usize,
}

fn read(path: &Path, environment: &Environment) -> Result<Contents, Error> {
    let text =
        fs::read_to_string(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
    let Value::Object(top) = parse(path, &text)? else {
        return Err(Error::Shape {
            path: path.to_owned(),
            field: "the top level".into(),
            expected: "an object with the kinds as its fields",
        });
    };
    let (mut items, mut nameless) = (Vec::new(), 0);
    let mut seen: HashSet<Key, RandomState> = HashSet::default();
    for (field, list) in top {
        let Some(kind) = Kind::named(&field) else {
            warn!(file = %path.display(), field, "no kind of resource has this name; left out");
            continue;
        };
        let list = match list {
            Value::Array(list) => list,
            Value::Null => Vec::new(),
            _ => return Err(Error::Shape { path: path.to_owned(), field, expected: "a list" }),
        };
        for (place, value) in list.into_iter().enumerate() {
            let named = item(kind, place + 1, value, environment);
            let skip = match named {
                Ok(Item { key, .. }) if !seen.insert(key.clone()) => {
                    format!("found duplicate id {} in {kind}", key.1)
                }
                Ok(item) => {
                    if let Err(Invalid(reason)) = &item.outcome {
                        let (kind, id) = &item.key;
                        warn!(file = %path.display(), %kind, %id, reason, "an item is left out");
                    }
                    items.push(item);
                    continue;
                }
                Err(Invalid(reason)) => reason,
            };
            nameless += 1;
            warn!(file = %path.display(), item = format!("{kind}[{place}]"), reason = skip, "an item is left out");
        }
    }
    Ok(Contents { items, nameless })
}

fn parse(path: &Path, text: &str) -> Result<Value, Error> {
    let syntax = |why: String| Error::Syntax { path: path.to_owned(), why };
    if path.extension().is_some_and(|extension| extension == "json") {
        return serde_json::from_str(text).map_err(|error| syntax(error.to_string()));
    }
    if text.trim_end().lines().next_back().is_none_or(|last| last.trim() != "#END") {
        return Err(Error::NoEnd { path: path.to_owned() });
    }
    // The operator's own file may be large. Its text stays out of error messages: it has secrets.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: 100_000_000,
            max_nodes: 50_000_000,
            max_total_scalar_bytes: 1 << 30,
            max_documents: 1,
        },
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| syntax(error.to_string()))
}

/// An item and its name. The error is for an item that has none.
fn item(
    kind: Kind,
    place: usize,
    value: Value,
    environment: &Environment,
) -> Result<Item, Invalid> {
    let (Value::Object(mut fields), missing) = resolve(value, environment) else {
        return Err(Invalid::new("must be an object"));
    };
    let key = item_name(kind, place, &mut fields)?;
    let value = Value::Object(fields);
    let outcome = match missing {
        Some(name) => Err(Invalid::new(format!(
            "the environment variable {name} is not set, and ${{{{{name}}}}} has no default"
        ))),
        None => Body::parse(key.0, &value)
            .map(|body| (Version::of(0, value.to_string().as_bytes()).fingerprint, body)),
    };
    let closed = outcome.is_err().then(|| Body::closed(key.0, &value)).flatten();
    Ok(Item { key, outcome, closed })
}

/// What an item of a list is called, as APISIX calls it: consumers by `username`, credentials `<consumer>/credentials/<id>` in the
/// list of consumers or of credentials, all others by `id`, or by their `place` (from 1) in the list.
///
/// # Errors
/// The name is missing where it must be, or is none.
pub fn item_name(
    kind: Kind,
    place: usize,
    fields: &mut Map<String, Value>,
) -> Result<Key, Invalid> {
    let given = match fields.get("id") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        None | Some(Value::Null) => None,
        Some(_) => return Err(Invalid::new("id must be a text or a number")),
    };
    let is_credential = given.as_ref().is_some_and(|id| id.contains("/credentials/"));
    let (kind, text) = match (kind, given) {
        (Kind::Consumers, Some(id)) if is_credential => (Kind::Credentials, id),
        (Kind::Consumers, given) => {
            let username = fields.get("username").and_then(Value::as_str).map(str::to_owned);
            let username =
                username.ok_or_else(|| Invalid::new("username is required, and must be a text"))?;
            // A consumer has no id of its own; some tools repeat the name there.
            if given.as_ref() == Some(&username) {
                fields.shift_remove("id");
            }
            (kind, username)
        }
        (Kind::Credentials, Some(id)) if is_credential => (kind, id),
        (Kind::Credentials, _) => {
            return Err(Invalid::new("id must be <consumer>/credentials/<id>"));
        }
        (Kind::PluginMetadata, None) => {
            return Err(Invalid::new("id is required: the plugin's name"));
        }
        (_, Some(id)) => (kind, id),
        (_, None) => (kind, format!("{kind}-{place}")),
    };
    let fits = Id::parse(&text)
        .ok()
        .filter(|_| is_credential || kind == Kind::Secrets || !text.contains('/'));
    let id = fits
        .ok_or_else(|| Invalid::new(format!("{text:?} is no id: 1 to 64 of a-z A-Z 0-9 - _ .")))?;
    Ok((kind, id))
}

/// Puts environment variables into all texts, and tells the first one that is not set.
pub fn resolve(value: Value, environment: &Environment) -> (Value, Option<String>) {
    match value {
        Value::String(text) => match substitute(&text, &**environment) {
            Ok(None) => (Value::String(text), None),
            Ok(Some(resolved)) => (as_written(resolved), None),
            Err(name) => (Value::String(text), Some(name)),
        },
        Value::Array(values) => {
            let mut missing = None;
            let values = values.into_iter().map(|value| {
                let (value, name) = resolve(value, environment);
                missing = missing.take().or(name);
                value
            });
            (Value::Array(values.collect()), missing)
        }
        Value::Object(fields) => {
            let mut missing = None;
            let mut resolved = Map::new();
            for (field, value) in fields {
                let (value, name) = resolve(value, environment);
                missing = missing.or(name);
                let field = match substitute(&field, &**environment) {
                    Ok(renamed) => renamed.unwrap_or(field),
                    Err(name) => {
                        missing = missing.or(Some(name));
                        field
                    }
                };
                resolved.insert(field, value);
            }
            (Value::Object(resolved), missing)
        }
        other => (other, None),
    }
}

/// A text that came from a variable: a number, `true` and `false` are what they look like.
fn as_written(text: String) -> Value {
    match serde_json::from_str(&text) {
        Ok(value @ (Value::Number(_) | Value::Bool(_))) => value,
        _ => Value::String(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment() -> Environment {
        Arc::new(|name| match name {
            "KEY" => Some("s3cret: [x]".into()),
            "PORT" => Some("8080".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn variables_are_put_in_after_parsing_and_one_that_is_missing_is_named() {
        let substitute = |text| substitute(text, &*environment());
        assert_eq!(substitute("no variable, ${KEY} $KEY {{KEY}}"), Ok(None));
        assert_eq!(substitute("${{KEY}}"), Ok(Some("s3cret: [x]".into())));
        assert_eq!(substitute("a-${{ PORT }}-${{NONE:=x y}}"), Ok(Some("a-8080-x y".into())));
        assert_eq!(substitute("${{NONE:=}}${{EMPTY:=no}}"), Ok(Some(String::new())));
        assert_eq!(substitute("${{PORT"), Ok(None));
        assert_eq!(substitute("${{NO-NAME}}"), Ok(None));
        assert_eq!(substitute("${{PORT}} ${{NONE}}"), Err("NONE".into()));
    }

    #[test]
    fn a_text_with_a_variable_becomes_the_number_that_it_reads_as() {
        let value = serde_json::json!({"port": "${{PORT}}", "on": "${{X:=true}}", "plain": "8080", "${{KEY}}": 1});
        let (value, missing) = resolve(value, &environment());
        assert_eq!(missing, None);
        assert_eq!(
            value,
            serde_json::json!({"port": 8080, "on": true, "plain": "8080", "s3cret: [x]": 1})
        );
    }

    const FIRST: &str = r#"
routes:
  - id: one
    uri: /one
    upstream_id: 1
  - uri: /second
    upstream: { nodes: { "127.0.0.1:${{PORT}}": 1 } }
  - id: needs
    uri: /needs
    desc: "${{NOT_SET}}"
upstreams:
  - id: 1
    nodes:
      - { host: 127.0.0.1, port: "${{PORT}}", weight: 1 }
  - id: 1
    nodes: {}
  - id: a b
consumers:
  - username: john
    plugins: { basic-auth: { username: john, password: "${{KEY}}" } }
  - username: jane
    id: jane
  - id: john/credentials/first
    plugins: { key-auth: { key: "${{KEY}}" } }
  - plugins: {}
credentials:
  - id: jane/credentials/c
    plugins: { key-auth: { key: janes } }
  - id: no
plugin_metadata:
  - id: http-logger
    log_format: {}
  - log_format: {}
services:
plugins: [key-auth]
#END
"#;

    fn names(batch: &Batch) -> Vec<String> {
        let mut names: Vec<String> = batch
            .changes
            .iter()
            .map(|change| match change {
                Change::Put(resource) => {
                    format!("{}/{}@{}", resource.kind, resource.id, resource.revision)
                }
                Change::Delete(kind, id) => format!("-{kind}/{id}"),
            })
            .collect();
        names.sort();
        names
    }

    async fn next(feed: &mut FileFeed) -> Batch {
        let batch = tokio::time::timeout(Duration::from_secs(10), feed.next()).await.unwrap();
        feed.applied(Applied { revision: batch.revision, ..Applied::default() });
        batch
    }

    #[tokio::test]
    async fn items_are_named_as_apisix_names_them_and_bad_ones_are_left_out() {
        let folder = super::super::tests::Folder::new("items");
        let path = folder.0.join("apisix.yaml");
        fs::write(&path, FIRST).unwrap();
        let mut feed = FileFeed::open(&path, environment()).unwrap();
        let batch = next(&mut feed).await;
        assert!(batch.complete);
        assert_eq!(
            names(&batch),
            [
                "consumers/jane@1",
                "consumers/john@1",
                "credentials/jane/credentials/c@1",
                "credentials/john/credentials/first@1",
                "plugin_metadata/http-logger@1",
                "routes/needs@1",
                "routes/one@1",
                "routes/routes-2@1",
                "upstreams/1@1",
            ]
        );
        let [unset] = &batch.unreadable[..] else { panic!("{:?}", batch.unreadable) };
        assert_eq!(unset.id.as_str(), "needs");
        assert_eq!(
            unset.reason,
            "the environment variable NOT_SET is not set, and ${{NOT_SET}} has no default"
        );
        let upstream = batch.changes.iter().find_map(|change| match change {
            Change::Put(Resource { body: Body::Upstream(upstream), .. }) => Some(upstream),
            _ => None,
        });
        let Some(crate::model::Nodes::List(nodes)) = &upstream.unwrap().nodes else { panic!() };
        assert_eq!(nodes[0].port, Some(8080), "the first of two with the same id");
    }

    #[tokio::test]
    async fn a_changed_file_is_read_again_and_only_what_differs_comes() {
        let folder = super::super::tests::Folder::new("reload");
        let path = folder.0.join("apisix.yaml");
        fs::write(&path, FIRST).unwrap();
        let mut feed =
            FileFeed::open(&path, environment()).unwrap().looking_every(Duration::from_millis(2));
        next(&mut feed).await;

        // Half written, not YAML, of the wrong shape, gone: nothing changes. Then one route differs, one cannot be read,
        // and one is gone.
        for broken in ["routes:\n  - id: one", "routes: [\n#END", "routes: 7\n#END", "- 1\n#END"] {
            fs::write(&path, broken).unwrap();
            let look = tokio::time::timeout(Duration::from_millis(50), feed.next()).await;
            assert!(look.is_err(), "{broken}");
        }
        let status = feed.status();
        assert!(status.load().error.as_ref().unwrap().contains("must be an object"));
        fs::remove_file(&path).unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(50), feed.next()).await.is_err());
        assert!(status.load().error.as_ref().unwrap().contains("cannot read"));
        assert_eq!(
            status.load().left_out,
            6,
            "five that have no good name, and one that lacks a variable"
        );
        let second = FIRST
            .replace("uri: /one", "uri: 7")
            .replace("uri: /second", "uri: /2nd")
            .replace("  - id: jane/credentials/c\n    plugins: { key-auth: { key: janes } }\n", "");
        fs::write(&path, second).unwrap();
        let batch = next(&mut feed).await;
        assert!(!batch.complete);
        // The route that needs a variable stays closed: its stand-in comes with each batch.
        assert_eq!(
            names(&batch),
            ["-credentials/jane/credentials/c", "routes/needs@2", "routes/routes-2@2"]
        );
        assert_eq!(batch.unreadable[0].id.as_str(), "one");

        assert_eq!((&status.load().error, status.load().left_out), (&None, 7));

        // Put right again, through a symbolic link that is moved. The version before was in force all the time, and is told
        // again: the damage was, and its end must be.
        let other = folder.0.join("other");
        fs::write(&other, FIRST).unwrap();
        let link = folder.0.join("link");
        std::os::unix::fs::symlink(&other, &link).unwrap();
        fs::rename(&link, &path).unwrap();
        let batch = next(&mut feed).await;
        assert_eq!(
            names(&batch),
            [
                "credentials/jane/credentials/c@3",
                "routes/needs@3",
                "routes/one@1",
                "routes/routes-2@3"
            ]
        );
    }

    #[test]
    fn a_file_that_cannot_be_used_at_the_start_is_an_error_that_names_it() {
        let folder = super::super::tests::Folder::new("start");
        let path = folder.0.join("apisix.yaml");
        let open = |path: &Path| FileFeed::open(path, environment()).err().unwrap().to_string();
        assert_eq!(open(&path), format!("cannot read the resources file {}", path.display()));
        for (text, end) in [
            ("routes: []\n", "has no #END as its last line"),
            ("routes: []\n# END\n", "has no #END as its last line"),
            ("routes: {}\n#END\n", ": routes must be a list"),
            ("[]\n#END\n", ": the top level must be an object with the kinds as its fields"),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(
                open(&path),
                format!(
                    "the resources file {}{}{end}",
                    path.display(),
                    if end.starts_with(':') { "" } else { " " }
                )
            );
        }
        fs::write(&path, "routes:\n  - id: 1\n   key: s3cret\n#END\n").unwrap();
        let sentence = open(&path);
        assert!(sentence.contains("cannot be parsed") && sentence.contains("line 3"), "{sentence}");
        assert!(!sentence.contains("s3cret"), "{sentence}");

        let json = folder.0.join("apisix.json");
        fs::write(&json, r#"{"routes": [{"id": 1, "uri": "/"}]}"#).unwrap();
        let mut feed = FileFeed::open(&json, environment()).unwrap();
        assert_eq!(names(&feed.first.take().unwrap()), ["routes/1@1"]);
    }
}
