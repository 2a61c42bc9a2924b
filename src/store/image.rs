//! All that a store holds, as it rests: what a backup is made of and what goes from one store to another.
//!
//! An image is of one revision. Its file is one line about the whole (format, prefix, revision, number of entries, SHA-256 of the
//! rest) and one JSON array per entry: `[key, created, modified, seconds to live or null, value]`. Secrets in it stay sealed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Error;
use crate::model::Revision;
use crate::rt::crypto::digest::{SHA256, digest};
use crate::rt::unix_seconds;

/// Everything under a prefix, at one revision.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Image {
    /// The entries, by key.
    pub entries: Vec<ImageEntry>,
    /// The store's revision at which they all stood.
    pub revision: Revision,
    /// Keys whose values are not JSON: they are left out (APISIX's `init_dir`).
    pub skipped: Vec<String>,
}

/// One entry as it rests.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageEntry {
    /// The whole key.
    pub key: String,
    /// The JSON text, byte for byte.
    pub text: String,
    /// The revision that created the key.
    pub created: Revision,
    /// The revision that wrote it last.
    pub modified: Revision,
    /// Seconds until it vanishes, if it does.
    pub ttl: Option<u64>,
}

/// What became of [`super::Store::reseal`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resealed {
    /// Entries that were sealed anew.
    pub sealed: usize,
    /// Keys of entries with a secret that no key here opens. They are as they were.
    pub closed: Vec<String>,
}

const FORMAT: &str = "wardgate store image";
const VERSION: u32 = 1;

/// The first line.
#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    /// What the store's settings call `prefix`.
    prefix: String,
    revision: Revision,
    entries: usize,
    made_at: i64,
    sha256: String,
}

type Line<'a> = (&'a str, Revision, Revision, Option<u64>, &'a RawValue);

impl Image {
    /// The file's bytes. `prefix` is that of the store's settings.
    ///
    /// # Errors
    /// An entry's text is not JSON.
    pub fn to_bytes(&self, prefix: &str) -> Result<Vec<u8>, Error> {
        let mut body = Vec::new();
        for entry in &self.entries {
            let not_json = |_| Error::NotJson { key: entry.key.clone() };
            let value: &RawValue = serde_json::from_str(&entry.text).map_err(not_json)?;
            // A text with line breaks is as good JSON as another, and lines here are entries.
            let line: Line<'_> = (&entry.key, entry.created, entry.modified, entry.ttl, value);
            serde_json::to_writer(&mut body, &line).map_err(not_json)?;
            body.push(b'\n');
        }
        let header = Header {
            format: FORMAT.into(),
            version: VERSION,
            prefix: prefix.into(),
            revision: self.revision,
            entries: self.entries.len(),
            made_at: unix_seconds(),
            sha256: hex::encode(digest(&SHA256, &body)),
        };
        let mut whole = serde_json::to_vec(&header).unwrap_or_default();
        whole.push(b'\n');
        whole.append(&mut body);
        Ok(whole)
    }

    /// Reads a file's bytes and checks all that it says; the image and its prefix.
    ///
    /// # Errors
    /// The sentence says what is wrong with it.
    pub fn from_bytes(bytes: &[u8]) -> Result<(Self, String), String> {
        let end = memchr::memchr(b'\n', bytes).ok_or("its first line has no end")?;
        let (header, body) = (&bytes[..end], &bytes[end + 1..]);
        let header: Header = serde_json::from_slice(header)
            .map_err(|_| "its first line is not that of a store's image")?;
        if header.format != FORMAT || header.version != VERSION {
            let Header { format, version, .. } = header;
            return Err(format!(
                "it says it is {format:?} version {version}, expected {FORMAT:?} version {VERSION}"
            ));
        }
        if hex::encode(digest(&SHA256, body)) != header.sha256 {
            return Err("its SHA-256 is not the one that its first line names".into());
        }
        let mut image = Self { revision: header.revision, ..Self::default() };
        for line in serde_json::Deserializer::from_slice(body).into_iter::<Line<'_>>() {
            let (key, created, modified, ttl, value) = line.map_err(|error| error.to_string())?;
            if created == 0 || created > modified || modified > header.revision {
                return Err(format!("entry {key} says revisions that cannot be"));
            }
            let (key, text) = (key.to_owned(), value.get().to_owned());
            if image.entries.last().is_some_and(|before| before.key >= key) {
                return Err(format!("entry {key} is out of order or there twice"));
            }
            image.entries.push(ImageEntry { key, text, created, modified, ttl });
        }
        if image.entries.len() != header.entries {
            let found = image.entries.len();
            return Err(format!("it has {found} entries, its first line says {}", header.entries));
        }
        Ok((image, header.prefix))
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// The file cannot be read, or is not a whole image.
    pub fn read(path: &Path) -> Result<(Self, String), Error> {
        let file = |why: io::Error| Error::File { path: path.to_owned(), why: why.to_string() };
        let bytes = fs::read(path).map_err(file)?;
        Self::from_bytes(&bytes).map_err(|why| Error::BadImage { path: path.to_owned(), why })
    }
}

/// Writes a file that only its owner reads: whole, or not at all.
///
/// # Errors
/// The system refuses.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |why: io::Error| Error::File { path: path.to_owned(), why: why.to_string() };
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(name);
    let written = (|| {
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(failed)?;
    // The rename itself must survive a crash too.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))
        .and_then(|folder| folder.sync_all())
        .map_err(failed)
}

/// The keys under a store's prefix: resources, and what lies beside them (`<prefix>-history/`), but for what is of the moment: how
/// control planes and canary pushes stand.
pub fn is_under(prefix: &str, key: &str) -> bool {
    let of_the_moment = |rest: &str| rest.starts_with("-fleet/") || rest.starts_with("-canary/");
    key.strip_prefix(prefix)
        .is_some_and(|rest| rest.starts_with(['/', '-']) && !of_the_moment(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        let entry = |key: &str, text: &str, ttl| ImageEntry {
            key: key.into(),
            text: text.into(),
            created: 2,
            modified: 5,
            ttl,
        };
        let entries = vec![
            entry("/apisix/routes/1", "{\"z\": 1.0,\n \"a\": \"ä\"}", None),
            entry("/apisix/routes/2", "{}", Some(7)),
        ];
        Image { entries, revision: 9, skipped: Vec::new() }
    }

    #[test]
    fn an_image_is_read_as_it_was_written_and_refused_when_anything_is_wrong() {
        let bytes = image().to_bytes("/apisix").unwrap();
        assert_eq!(Image::from_bytes(&bytes).unwrap(), (image(), "/apisix".to_owned()));
        let refused = |bytes: &[u8]| Image::from_bytes(bytes).unwrap_err();
        let mut flipped = bytes.clone();
        let last = flipped.len() - 3;
        flipped[last] ^= 1;
        assert!(refused(&flipped).contains("SHA-256"));
        assert!(refused(&bytes[..bytes.len() - 5]).contains("SHA-256"));
        assert!(refused(b"routes: []\n").contains("first line"));
        assert!(refused(b"").contains("no end"));
        let mut twice = image();
        twice.entries[1].key = twice.entries[0].key.clone();
        assert!(refused(&twice.to_bytes("/apisix").unwrap()).contains("there twice"));
        let mut ahead = image();
        ahead.entries[0].modified = 10;
        assert!(refused(&ahead.to_bytes("/apisix").unwrap()).contains("revisions that cannot be"));
    }

    #[test]
    fn what_lies_beside_a_prefix_belongs_to_it_and_another_prefix_does_not() {
        for (key, under) in [
            ("/apisix/routes/1", true),
            ("/apisix-history/x/1", true),
            ("/apisix2/routes/1", false),
            ("/apisix", false),
        ] {
            assert_eq!(is_under("/apisix", key), under, "{key}");
        }
    }
}
