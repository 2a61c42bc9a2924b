//! What was fetched last, on disk, so that a restart does not depend on the other side (87).
//!
//! A file has three parts: one line that says what it is and the SHA-256 of the rest, one line about the content, and the
//! content. It is written beside its place, flushed and renamed; its mode is 0600. A damaged file is moved aside (`.damaged`)
//! and not used.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::rt::crypto::digest::{SHA256, digest};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Error;

const FORMAT: &str = "wardgate fetched trust";
const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Header {
    format: String,
    version: u32,
    sha256: String,
}

/// A folder of kept files.
#[derive(Clone, Debug)]
pub(super) struct Shelf {
    folder: PathBuf,
}

impl Shelf {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        // A file's name has at most 255 bytes, a trust domain's name as well.
        let fits = name.len() <= 200;
        self.folder.join(if fits {
            name.to_owned()
        } else {
            hex::encode(digest(&SHA256, name.as_bytes()))
        })
    }

    /// Puts a file into its place at once.
    pub(super) fn keep(
        &self,
        name: &str,
        about: &impl Serialize,
        content: &[u8],
    ) -> Result<(), Error> {
        let path = self.path(name);
        self.write(&path, about, content).map_err(|source| Error::File { path, source })
    }

    fn write(&self, path: &Path, about: &impl Serialize, content: &[u8]) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let mut rest = serde_json::to_vec(about)?;
        rest.push(b'\n');
        rest.extend_from_slice(content);
        let sha256 = hex::encode(digest(&SHA256, &rest));
        let header = Header { format: FORMAT.into(), version: VERSION, sha256 };
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        serde_json::to_writer(&mut file, &header)?;
        file.write_all(b"\n")?;
        file.write_all(&rest)?;
        file.sync_all()?;
        fs::rename(&fresh, path)?;
        // The rename itself must survive a crash too.
        File::open(&self.folder)?.sync_all()
    }

    /// What was kept under a name. A damaged file is moved aside, and named in the error.
    pub(super) fn read<T: DeserializeOwned>(
        &self,
        name: &str,
    ) -> Result<Option<(T, Vec<u8>)>, Error> {
        let path = self.path(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::File { path, source }),
        };
        parse(&bytes).map(Some).map_err(|why| {
            self.move_aside(name);
            Error::Damaged { path, why: why.into() }
        })
    }

    /// A file that is of no use is kept for whoever wants to know why.
    pub(super) fn move_aside(&self, name: &str) {
        let path = self.path(name);
        let mut aside = path.as_os_str().to_owned();
        aside.push(".damaged");
        let _ = fs::rename(&path, aside);
    }

    pub(super) fn forget(&self, name: &str) {
        let _ = fs::remove_file(self.path(name));
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<(T, Vec<u8>), &'static str> {
    let end = memchr::memchr(b'\n', bytes).ok_or("its first line has no end")?;
    let (header, rest) = (&bytes[..end], &bytes[end + 1..]);
    let header: Header =
        serde_json::from_slice(header).map_err(|_| "its first line is not a header of ours")?;
    if header.format != FORMAT || header.version != VERSION {
        return Err("it is of another format or version");
    }
    if hex::encode(digest(&SHA256, rest)) != header.sha256 {
        return Err("its SHA-256 is not the one that its first line names");
    }
    let end = memchr::memchr(b'\n', rest).ok_or("its second line has no end")?;
    let about = serde_json::from_slice(&rest[..end]).map_err(|_| "its second line is damaged")?;
    Ok((about, rest[end + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::identity::forge::Folder;

    #[test]
    fn rule_87_what_is_kept_is_read_to_the_byte_and_damage_is_noticed() {
        let folder = Folder::new();
        let shelf = Shelf::new(folder.path().join("below"));
        assert!(shelf.read::<u64>("x").unwrap().is_none());
        shelf.keep("x", &7_u64, b"a\nb\0").unwrap();
        assert_eq!(shelf.read::<u64>("x").unwrap(), Some((7, b"a\nb\0".to_vec())));
        let path = shelf.path("x");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let good = fs::read(&path).unwrap();
        for at in [3, good.len() / 2, good.len() - 1] {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            assert!(matches!(shelf.read::<u64>("x"), Err(Error::Damaged { .. })), "byte {at}");
            assert!(!path.exists(), "it is moved aside");
        }
        fs::write(&path, &good[..good.len() - 2]).unwrap();
        assert!(shelf.read::<u64>("x").is_err(), "cut off");
        let long = "a".repeat(255);
        shelf.keep(&long, &1_u64, b"").unwrap();
        assert!(shelf.read::<u64>(&long).unwrap().is_some());
        shelf.forget(&long);
        assert!(shelf.read::<u64>(&long).unwrap().is_none());
    }
}
