//! What is known as JSON: for the control API, and in a file for the next start.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::blocking::DumpSettings;
use super::board::{Board, Services};
use super::service::{Service, node, sound};
use super::{Error, contact};
use crate::model::Node;
use crate::rt::{Clock, causes};

/// A node as APISIX shows it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Shown {
    host: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    weight: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    priority: i32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_zero(priority: &i32) -> bool {
    *priority == 0
}

/// Nodes as APISIX shows them.
pub(super) fn shown(nodes: &[Node]) -> Vec<Shown> {
    let one = |node: &Node| Shown {
        host: node.host.clone(),
        port: node.port,
        weight: node.weight,
        priority: node.priority,
    };
    nodes.iter().map(one).collect()
}

/// Services by their names.
pub(super) fn services(known: &Services) -> BTreeMap<&str, Vec<Shown>> {
    known.iter().map(|(service, nodes)| (&*service.name, shown(nodes))).collect()
}

/// The file, as APISIX writes it.
#[derive(Serialize, Deserialize)]
struct Contents {
    services: BTreeMap<String, Vec<Shown>>,
    /// Seconds since 1970.
    last_update: i64,
    #[serde(default)]
    expire: u64,
}

/// A file with what is known.
pub(super) struct DumpFile {
    path: PathBuf,
    loads: bool,
    expire: u64,
    clock: Clock,
}

impl DumpFile {
    pub(super) fn new(settings: &DumpSettings) -> Self {
        Self {
            path: settings.path.clone(),
            loads: settings.load_on_init,
            expire: settings.expire,
            clock: Clock::system(),
        }
    }

    /// What the file has, as it is.
    ///
    /// # Errors
    /// It cannot be read, or is no JSON.
    pub(super) fn contents(&self) -> Result<Value, Error> {
        let read = |source| Error::Read { path: self.path.clone(), source };
        let text = std::fs::read(&self.path).map_err(read)?;
        serde_json::from_slice(&text).map_err(|error| read(error.into()))
    }

    /// What the file has, unless it is too old or not to be read.
    pub(super) fn load(&self) -> Services {
        if !self.loads || !self.path.exists() {
            return Services::new();
        }
        let parsed = self.contents().and_then(|value| {
            serde_json::from_value::<Contents>(value).map_err(|error| Error::Read {
                path: self.path.clone(),
                source: std::io::Error::other(error),
            })
        });
        let contents = match parsed {
            Ok(contents) => contents,
            Err(error) => {
                tracing::warn!("the dumped services are not used: {}", causes(&error));
                return Services::new();
            }
        };
        let expire = i64::try_from(self.expire).unwrap_or(i64::MAX);
        if expire > 0 && contents.last_update.saturating_add(expire) < self.clock.now() {
            tracing::warn!(path = %self.path.display(), "the dumped services are too old and not used");
            return Services::new();
        }
        let restored = |shown: Shown| Node {
            priority: shown.priority,
            ..node(shown.host, shown.port, shown.weight)
        };
        let service = |(name, nodes): (String, Vec<Shown>)| {
            let nodes: Arc<[Node]> = sound(nodes.into_iter().map(restored).collect()).into();
            (Service::named(name), nodes)
        };
        contents.services.into_iter().map(service).collect()
    }

    /// Writes the file whenever something has changed, for ever.
    pub(super) async fn keep(&self, board: &Board) {
        let mut changed = board.changed();
        while changed.changed().await {
            // Several changes mostly come at once.
            tokio::time::sleep(contact::GATHER).await;
            let contents = Contents {
                services: services(&board.known())
                    .into_iter()
                    .map(|(name, nodes)| (name.to_owned(), nodes))
                    .collect(),
                last_update: self.clock.now(),
                expire: self.expire,
            };
            let (path, text) = (self.path.clone(), serde_json::to_vec(&contents));
            let written = tokio::task::spawn_blocking(move || write(&path, &text?)).await;
            if let Ok(Err(error)) = written {
                tracing::error!(path = %self.path.display(), %error, "the services cannot be dumped");
            }
        }
    }
}

/// Whole, or not at all.
fn write(path: &Path, text: &[u8]) -> std::io::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".fresh");
    std::fs::write(&fresh, text)?;
    std::fs::rename(&fresh, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_file_is_read_until_it_is_too_old() {
        let folder = std::env::temp_dir().join(format!("wardgate-dump-{}", uuid::Uuid::new_v4()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("consul.dump");
        let contents = json!({
            "services": {"a": [{"host": "10.0.0.1", "port": 80, "weight": 3}]},
            "last_update": 1000, "expire": 0,
        });
        write(&path, contents.to_string().as_bytes()).unwrap();
        let load = |loads, expire, now| {
            let settings = DumpSettings { path: path.clone(), load_on_init: loads, expire };
            let file = DumpFile { clock: Clock::fixed(now), ..DumpFile::new(&settings) };
            file.load().len()
        };
        assert_eq!(load(true, 0, 1_000_000), 1);
        assert_eq!(load(true, 60, 1060), 1);
        assert_eq!(load(true, 60, 1061), 0);
        assert_eq!(load(false, 0, 1000), 0);
        write(&path, b"{").unwrap();
        assert_eq!(load(true, 0, 1000), 0);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
