//! The decision log's file: locked by its one writer, continued when it is sound, put aside when it is damaged.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::chain::{self, Link, Tail};
use super::error::Error;

/// A log's open file.
pub(super) struct LogFile {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) bytes: u64,
}

/// A file to go on in, and where its chain stands.
pub(super) struct Opened {
    pub(super) file: LogFile,
    pub(super) link: Link,
    pub(super) is_new: bool,
    pub(super) continues: Option<String>,
    pub(super) damage: Option<Damage>,
}

/// What was found at the end of an older file.
pub(super) struct Damage {
    pub(super) file: String,
    pub(super) bytes: u64,
    pub(super) why: String,
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

pub(super) fn open_file(path: &Path) -> Result<Opened, Error> {
    let open = |source| Error::Open { path: path.to_path_buf(), source };
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).map_err(open)?;
    }
    let mut file = match OpenOptions::new().read(true).append(true).open(path) {
        Ok(file) => Some(file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(source) => return Err(open(source)),
    };
    if let Some(file) = &file {
        lock(file, path)?;
    }
    let read = |source| Error::Read { path: path.to_path_buf(), source };
    let tail = file.as_mut().map_or(Ok(Tail::Empty), chain::tail).map_err(read)?;
    match (tail, file) {
        (Tail::Sound(link), Some(file)) => {
            let bytes = file.metadata().map_err(read)?.len();
            let file = LogFile { path: path.to_path_buf(), file, bytes };
            Ok(Opened { file, link, is_new: false, continues: None, damage: None })
        }
        (Tail::Damaged { last, bytes, why }, Some(damaged)) => {
            // Never written to and never cut: it is evidence. The lock is held until the new file has its own.
            let aside = put_aside(path, next_number(path))?;
            let file = LogFile { path: path.to_path_buf(), file: create(path)?, bytes: 0 };
            drop(damaged);
            let link = last.map_or_else(|| before(&aside, path), Ok)?;
            let damage = Damage { file: name_of(&aside), bytes, why };
            Ok(Opened { file, link, is_new: true, continues: None, damage: Some(damage) })
        }
        (_, file) => {
            // No file, or one without a line: the chain may end in the last one that was put aside.
            let (mut link, mut continues, mut damage) = (Link::default(), None, None);
            if let Some((_, older)) = chain::rotated(path).pop() {
                let read = |source| Error::Read { path: older.clone(), source };
                let mut file = File::open(&older).map_err(read)?;
                match chain::tail(&mut file).map_err(read)? {
                    Tail::Empty => {}
                    Tail::Sound(last) => {
                        (link, continues) = (last, Some(name_of(&older)));
                    }
                    Tail::Damaged { last, bytes, why } => {
                        link = last.map_or_else(|| before(&older, path), Ok)?;
                        damage = Some(Damage { file: name_of(&older), bytes, why });
                    }
                }
            }
            let file = file.map_or_else(|| create(path), Ok)?;
            let file = LogFile { path: path.to_path_buf(), file, bytes: 0 };
            Ok(Opened { file, link, is_new: true, continues, damage })
        }
    }
}

/// Where the chain stands before a file without a record that holds. When all that is in it is the torn beginning of the very next
/// record, a crash fell together with a rotation and the chain goes on; anything else begins a new one.
fn before(torn: &Path, log: &Path) -> Result<Link, Error> {
    for (_, older) in chain::rotated(log).into_iter().rev().filter(|(_, older)| older != torn) {
        let read = |source| Error::Read { path: older.clone(), source };
        let tail = File::open(&older).and_then(|mut file| chain::tail(&mut file)).map_err(read)?;
        if let Tail::Sound(link) | Tail::Damaged { last: Some(link), .. } = tail {
            let read = |source| Error::Read { path: torn.to_path_buf(), source };
            let bytes = std::fs::read(torn).map_err(read)?;
            let next = chain::beginning(link.seq + 1);
            let length = bytes.len().min(next.len());
            let is_next = bytes[..length] == next.as_bytes()[..length] && !bytes.contains(&b'\n');
            return Ok(if is_next { link } else { Link::default() });
        }
    }
    Ok(Link::default())
}

pub(super) fn create(path: &Path) -> Result<File, Error> {
    let open = |source| Error::Open { path: path.to_path_buf(), source };
    let mut options = OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o640);
    let file = options.append(true).read(true).create_new(true).open(path).map_err(open)?;
    lock(&file, path)?;
    Ok(file)
}

fn lock(file: &File, path: &Path) -> Result<(), Error> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Error::InUse { path: path.to_path_buf() }),
        Err(errno) => Err(Error::Open { path: path.to_path_buf(), source: errno.into() }),
    }
}

/// Renames the log: from here on it bears this number.
pub(super) fn put_aside(path: &Path, number: u64) -> Result<PathBuf, Error> {
    // Somebody else's file of that name is not written over.
    let taken = |number: &u64| chain::rotated_name(path, *number).exists();
    let number = (number..).find(|number| !taken(number)).unwrap_or(number);
    let aside = chain::rotated_name(path, number);
    std::fs::rename(path, &aside)
        .map_err(|source| Error::Open { path: path.to_path_buf(), source })?;
    Ok(aside)
}

/// The number that the log's current file gets when it is put aside: one more than that of the file before it, also when that
/// one was retired.
pub(super) fn next_number(path: &Path) -> u64 {
    let kept = chain::rotated(path).last().map_or(0, |(number, _)| *number);
    let continued = chain::continued(path).unwrap_or_default();
    kept.max(continued) + 1
}
