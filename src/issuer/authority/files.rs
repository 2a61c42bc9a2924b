//! Where an authority keeps its files: a directory, or memory for one that ends with its process.
//!
//! A file is written beside its place, flushed to the disk and renamed into it, so that there is always a whole one.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};

use super::super::Error;

/// Mode of what only the owner may read.
pub(super) const CLOSED: u32 = 0o600;
/// Mode of what everybody may read.
pub(super) const OPEN: u32 = 0o644;

const LOCK: &str = "authority.lock";

/// The files of one authority.
#[derive(Debug)]
pub(super) struct Files {
    place: Place,
    #[cfg(test)]
    fuse: Option<std::sync::atomic::AtomicUsize>,
}

#[derive(Debug)]
enum Place {
    Memory(Mutex<BTreeMap<String, Vec<u8>>>),
    Directory(PathBuf),
}

/// When a file was replaced last: two of them differ when it was replaced in between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    modified: i128,
    length: u64,
}

/// Held while an authority is changed or read as a whole; the other processes on the same directory wait.
#[derive(Debug)]
pub(super) struct Lock {
    _file: Option<File>,
}

impl Files {
    pub(super) fn memory() -> Self {
        Self::of(Place::Memory(Mutex::default()))
    }

    pub(super) fn directory(path: &Path) -> Self {
        Self::of(Place::Directory(path.to_owned()))
    }

    fn of(place: Place) -> Self {
        Self {
            place,
            #[cfg(test)]
            fuse: None,
        }
    }

    /// As after a crash: from the `writes`th write on nothing reaches the disk any more.
    #[cfg(test)]
    pub(super) fn crashing_after(path: &Path, writes: usize) -> Self {
        Self { fuse: Some(writes.into()), ..Self::directory(path) }
    }

    /// Sets how many more writes there are before the crash.
    #[cfg(test)]
    pub(super) fn burn_after(&self, writes: usize) {
        if let Some(fuse) = &self.fuse {
            fuse.store(writes, std::sync::atomic::Ordering::Relaxed);
        }
    }

    /// Has the crash not come yet?
    #[cfg(test)]
    pub(super) fn is_whole(&self) -> bool {
        let left =
            |fuse: &std::sync::atomic::AtomicUsize| fuse.load(std::sync::atomic::Ordering::Relaxed);
        self.fuse.as_ref().is_none_or(|fuse| left(fuse) > 0)
    }

    #[cfg(test)]
    fn burn(&self) -> io::Result<()> {
        use std::sync::atomic::Ordering::Relaxed;
        let Some(fuse) = &self.fuse else { return Ok(()) };
        match fuse.fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1)) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("the process has ended here")),
        }
    }

    #[cfg(not(test))]
    #[expect(clippy::unnecessary_wraps, clippy::unused_self, reason = "tests let it fail")]
    fn burn(&self) -> io::Result<()> {
        Ok(())
    }

    /// The directory; nothing for an authority in memory.
    pub(super) fn folder(&self) -> Option<&Path> {
        match &self.place {
            Place::Memory(_) => None,
            Place::Directory(folder) => Some(folder),
        }
    }

    /// Where a file is, for error messages.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.folder().unwrap_or(Path::new("memory")).join(name)
    }

    /// Makes the directory (mode 0700) when it is missing.
    pub(super) fn make_folder(&self) -> Result<(), Error> {
        let Some(folder) = self.folder() else { return Ok(()) };
        let made = DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.map_err(|source| Error::Write { path: folder.to_owned(), source })
    }

    /// Waits until no other process changes the authority, and keeps others from it while the result lives.
    pub(super) fn lock(&self) -> Result<Lock, Error> {
        self.locked(FlockOperation::LockExclusive)
    }

    /// As [`Files::lock`], together with others who only read.
    pub(super) fn lock_shared(&self) -> Result<Lock, Error> {
        self.locked(FlockOperation::LockShared)
    }

    fn locked(&self, operation: FlockOperation) -> Result<Lock, Error> {
        let Some(folder) = self.folder() else { return Ok(Lock { _file: None }) };
        let path = folder.join(LOCK);
        let failed = |source| Error::Write { path: path.clone(), source };
        let mut options = OpenOptions::new();
        options.create(true).write(true).truncate(false).mode(CLOSED);
        let file = options.open(&path).map_err(failed)?;
        flock(&file, operation).map_err(|code| failed(code.into()))?;
        Ok(Lock { _file: Some(file) })
    }

    pub(super) fn read(&self, name: &str) -> Result<Vec<u8>, Error> {
        let read = match &self.place {
            Place::Memory(files) => {
                files.lock().get(name).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
            }
            Place::Directory(folder) => fs::read(folder.join(name)),
        };
        read.map_err(|source| Error::Read { path: self.path(name), source })
    }

    /// As [`Files::read`], for a file that need not be there.
    pub(super) fn read_if_there(&self, name: &str) -> Result<Option<Vec<u8>>, Error> {
        match self.read(name) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// May others than owner and group read it?
    pub(super) fn is_open_to_all(&self, name: &str) -> Result<bool, Error> {
        let Some(folder) = self.folder() else { return Ok(false) };
        match fs::metadata(folder.join(name)) {
            Ok(found) => Ok(found.permissions().mode() & 0o007 != 0),
            Err(source) => Err(Error::Read { path: self.path(name), source }),
        }
    }

    /// Puts a file in its place at once, flushed to the disk.
    pub(super) fn write(&self, name: &str, content: &[u8], mode: u32) -> Result<(), Error> {
        let written = self.burn().and_then(|()| match &self.place {
            Place::Memory(files) => {
                files.lock().insert(name.to_owned(), content.to_vec());
                Ok(())
            }
            Place::Directory(folder) => write(folder, name, content, mode),
        });
        written.map_err(|source| Error::Write { path: self.path(name), source })
    }

    /// Makes `name` another name of the file `of`.
    pub(super) fn link(&self, name: &str, of: &str) -> Result<(), Error> {
        let Some(folder) = self.folder() else { return Ok(()) };
        let place = folder.join(name);
        if fs::read_link(&place).is_ok_and(|found| found == Path::new(of)) {
            return Ok(());
        }
        let fresh = folder.join(format!("{name}.new"));
        let link = || {
            self.burn()?;
            remove(&fresh)?;
            std::os::unix::fs::symlink(of, &fresh)?;
            fs::rename(&fresh, &place)
        };
        link().map_err(|source| Error::Write { path: self.path(name), source })
    }

    /// Removes a file; one that is not there is removed already.
    pub(super) fn remove(&self, name: &str) -> Result<(), Error> {
        let removed = self.burn().and_then(|()| match &self.place {
            Place::Memory(files) => {
                files.lock().remove(name);
                Ok(())
            }
            Place::Directory(folder) => remove(&folder.join(name)),
        });
        removed.map_err(|source| Error::Write { path: self.path(name), source })
    }

    /// The names of all files.
    pub(super) fn names(&self) -> Result<Vec<String>, Error> {
        match &self.place {
            Place::Memory(files) => Ok(files.lock().keys().cloned().collect()),
            Place::Directory(folder) => {
                let failed = |source| Error::Read { path: folder.clone(), source };
                let mut names = Vec::new();
                for entry in fs::read_dir(folder).map_err(failed)? {
                    names.extend(entry.map_err(failed)?.file_name().into_string());
                }
                names.sort();
                Ok(names)
            }
        }
    }

    pub(super) fn is_there(&self, name: &str) -> bool {
        match &self.place {
            Place::Memory(files) => files.lock().contains_key(name),
            Place::Directory(folder) => folder.join(name).symlink_metadata().is_ok(),
        }
    }

    /// What tells whether a file was replaced; the same for every file that is not there.
    pub(super) fn stamp(&self, name: &str) -> Stamp {
        let Some(folder) = self.folder() else { return Stamp::default() };
        let Ok(found) = fs::metadata(folder.join(name)) else { return Stamp::default() };
        let modified = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
        Stamp { inode: found.ino(), modified, length: found.len() }
    }
}

pub(in crate::issuer) fn write(
    folder: &Path,
    name: &str,
    content: &[u8],
    mode: u32,
) -> io::Result<()> {
    let fresh = folder.join(format!("{name}.new"));
    remove(&fresh)?;
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&fresh)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&fresh, folder.join(name))?;
    // The name is on the disk only when its directory is.
    File::open(folder)?.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
