//! The zones that plugins may store answers in, as a process' settings name them.

use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Deserialize;

use super::zone::{CacheZones, Place};

/// Where plugins store answers of upstreams. Control plane and data planes have the same zones; plugins name them.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct CacheSettings {
    /// The zones. By default `disk_cache_one` (50m in memory for its index, 1G on disk) and `memory_cache` (50m).
    pub zones: Vec<ZoneSettings>,
}

/// One zone.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ZoneSettings {
    /// By which plugins name it.
    pub name: String,
    /// Memory that it takes: for answers, or for the index of those on disk. A number of bytes, or one with `k`, `m` or `g`.
    #[serde(default = "default_memory")]
    pub memory_size: String,
    /// Room for answers on disk. A zone that has it stores on disk, others in memory.
    #[serde(default)]
    pub disk_size: Option<String>,
    /// The folder of a zone on disk, for this process alone; `<state_dir>/cache/<name>` when not given.
    #[serde(default)]
    pub disk_path: Option<PathBuf>,
    /// How many digits the names of folders within it have, level by level: at most three levels of 1 or 2.
    #[serde(default = "default_levels")]
    pub cache_levels: String,
}

fn default_memory() -> String {
    "50m".to_owned()
}

fn default_levels() -> String {
    "1:2".to_owned()
}

impl Default for CacheSettings {
    fn default() -> Self {
        let zone = |name: &str, disk: Option<&str>| ZoneSettings {
            name: name.to_owned(),
            memory_size: default_memory(),
            disk_size: disk.map(str::to_owned),
            disk_path: None,
            cache_levels: default_levels(),
        };
        Self { zones: vec![zone("disk_cache_one", Some("1G")), zone("memory_cache", None)] }
    }
}

/// Why a zone cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("zones[{at}].{field}: {problem}")]
pub struct InvalidZone {
    /// Which one.
    pub at: usize,
    /// Which of its fields.
    pub field: &'static str,
    /// What is wrong, and what is expected.
    pub problem: &'static str,
}

/// Where a plugin stores answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum CacheStrategy {
    /// On disk.
    #[default]
    Disk,
    /// In memory.
    Memory,
}

impl CacheStrategy {
    /// As settings spell it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disk => "disk",
            Self::Memory => "memory",
        }
    }
}

impl CacheSettings {
    /// The zones, with nothing in them and no folder touched; those without a folder have it below `folder`. Without that they
    /// store nothing.
    ///
    /// # Errors
    /// A zone cannot be; the error names its field.
    pub fn zones(&self, folder: &Path) -> Result<CacheZones, InvalidZone> {
        let mut zones = Vec::new();
        for (at, zone) in self.zones.iter().enumerate() {
            let wrong = |field, problem| InvalidZone { at, field, problem };
            let lawful = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
            let is_name = (1..=100).contains(&zone.name.len())
                && zone.name.bytes().all(lawful)
                && !zone.name.starts_with('.');
            if !is_name {
                return Err(wrong(
                    "name",
                    "1 to 100 letters, digits, '-', '_' and '.' are expected",
                ));
            }
            if self.zones[..at].iter().any(|other| other.name == zone.name) {
                return Err(wrong("name", "another zone has this name"));
            }
            let expected = "a size from 64k on is expected, such as 50m or 1g";
            let memory = size(&zone.memory_size).ok_or_else(|| wrong("memory_size", expected))?;
            let levels = levels(&zone.cache_levels);
            let levels = levels.ok_or_else(|| {
                wrong(
                    "cache_levels",
                    "one to three numbers of 1 or 2 are expected, with ':' between",
                )
            })?;
            let place = match &zone.disk_size {
                None if zone.disk_path.is_some() => {
                    return Err(wrong("disk_path", "only a zone with disk_size has a folder"));
                }
                None => Place::Memory,
                Some(disk) => {
                    let disk = size(disk).ok_or_else(|| wrong("disk_size", expected))?;
                    let own = || match folder.as_os_str().is_empty() {
                        true => PathBuf::new(),
                        false => folder.join(&zone.name),
                    };
                    let path = zone.disk_path.clone().unwrap_or_else(own);
                    let is_shared = self.zones[..at].iter().any(|other| {
                        other.disk_path.is_some() && other.disk_path == zone.disk_path
                    });
                    let is_nowhere = zone.disk_path.is_some() && path.as_os_str().is_empty();
                    if is_nowhere || is_shared {
                        return Err(wrong(
                            "disk_path",
                            "a folder that no other zone has is expected",
                        ));
                    }
                    Place::Disk { size: disk, path, levels }
                }
            };
            zones.push((zone.name.clone(), memory, place));
        }
        Ok(CacheZones::new(zones))
    }
}

/// Bytes.
fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        _ => return None,
    };
    let number: u64 = digits.parse().ok()?;
    number.checked_mul(unit).filter(|bytes| (64 << 10..=1 << 50).contains(bytes))
}

fn levels(text: &str) -> Option<Vec<usize>> {
    let levels: Option<Vec<usize>> = text
        .split(':')
        .map(|level| match level {
            "1" => Some(1),
            "2" => Some(2),
            _ => None,
        })
        .collect();
    levels.filter(|levels| levels.len() <= 3)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sizes_and_levels_are_read_as_apisix_writes_them() {
        assert_eq!(size("50m"), Some(50 << 20));
        assert_eq!(
            (size("1G"), size("65536"), size("64k")),
            (Some(1 << 30), Some(65536), Some(65536))
        );
        for wrong in ["", "m", "1", "63k", "5x", "-1m", "1 000m", "99999999999g"] {
            assert_eq!(size(wrong), None, "{wrong}");
        }
        assert_eq!(levels("1:2"), Some(vec![1, 2]));
        for wrong in ["", "3", "1:", "1:2:1:2", "0"] {
            assert_eq!(levels(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_zone_that_cannot_be_is_refused_by_its_field() {
        for (zones, says) in [
            (json!([{"name": ""}]), "zones[0].name: 1 to 100"),
            (json!([{"name": "../up"}]), "zones[0].name: 1 to 100"),
            (json!([{"name": "a"}, {"name": "a"}]), "zones[1].name: another zone"),
            (json!([{"name": "a", "memory_size": "1"}]), "zones[0].memory_size: a size"),
            (json!([{"name": "a", "disk_size": "x"}]), "zones[0].disk_size: a size"),
            (json!([{"name": "a", "disk_path": "/x"}]), "zones[0].disk_path: only a zone"),
            (json!([{"name": "a", "cache_levels": "4"}]), "zones[0].cache_levels: one to three"),
            (
                json!([{"name": "a", "disk_size": "1m", "disk_path": "/x"}, {"name": "b", "disk_size": "1m", "disk_path": "/x"}]),
                "zones[1].disk_path: a folder that no other",
            ),
        ] {
            let settings: CacheSettings = serde_json::from_value(json!({"zones": zones})).unwrap();
            let why = settings.zones(Path::new("/state")).unwrap_err().to_string();
            assert!(why.starts_with(says), "{why}");
        }
        let zones = CacheSettings::default().zones(Path::new("/state")).unwrap();
        assert!(zones.find("disk_cache_one").is_some() && zones.find("memory_cache").is_some());
        assert!(serde_json::from_value::<CacheSettings>(json!({"zone": []})).is_err());
    }
}
