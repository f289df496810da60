// SPDX-License-Identifier: GPL-2.0

//! The directory in which a verifier's signed requests arrive.
//!
//! Whoever brings one gives the file another name when it is whole: a name that begins with a dot is
//! not looked at. What was done is removed, what was refused stays, with another ending.

use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::path::PathBuf;

use rustix::fs::Mode;
use rustix::fs::OFlags;

use crate::signed::MAX_SIGNED;

/// Its name in the directory of archives.
pub const NAME: &str = "requests";

/// How the name of what was refused ends.
pub const REFUSED: &str = ".refused";

/// The directory.
#[derive(Clone, Debug)]
pub struct Spool {
    path: PathBuf,
}

impl Spool {
    /// That in the directory of archives.
    pub fn new(archives: &Path) -> Self {
        Self {
            path: archives.join(NAME),
        }
    }

    /// Makes it if it is missing.
    ///
    /// # Errors
    ///
    /// If it cannot be made.
    pub fn make(&self) -> io::Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of what waits, in their order.
    ///
    /// # Errors
    ///
    /// If it cannot be read.
    pub fn waiting(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            if let Ok(name) = entry?.file_name().into_string() {
                if !name.starts_with('.') && !name.ends_with(REFUSED) {
                    names.push(name);
                }
            }
        }
        names.sort();
        Ok(names)
    }

    /// What waits under that name: one byte more than is allowed at most, so that it is seen to be
    /// too much.
    ///
    /// # Errors
    ///
    /// If it is no file, or cannot be read.
    pub fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        // Nothing that blocks or leads elsewhere.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(
            self.path.join(name),
            flags,
            Mode::empty(),
        )?);
        if !file.metadata()?.is_file() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut bytes = Vec::new();
        file.take(MAX_SIGNED as u64 + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Removes what was done.
    ///
    /// # Errors
    ///
    /// If it cannot be removed.
    pub fn done(&self, name: &str) -> io::Result<()> {
        fs::remove_file(self.path.join(name))
    }

    /// Sets aside what was refused, in place of what was under the same name before.
    ///
    /// # Errors
    ///
    /// If it cannot be renamed.
    pub fn refuse(&self, name: &str) -> io::Result<()> {
        fs::rename(
            self.path.join(name),
            self.path.join(format!("{name}{REFUSED}")),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_taken_in_order_and_set_aside() {
        let path = std::env::temp_dir().join(format!("ima-trim-spool.{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let spool = Spool::new(&path);
        spool.make().unwrap();
        let of = |name: &str| spool.path().join(name);
        for name in ["2", "1", ".3", "4.refused"] {
            fs::write(of(name), name).unwrap();
        }
        fs::write(of("5"), vec![0; 2 * MAX_SIGNED]).unwrap();
        std::os::unix::fs::symlink(of("1"), of("6")).unwrap();
        fs::create_dir(of("7")).unwrap();
        assert_eq!(spool.waiting().unwrap(), ["1", "2", "5", "6", "7"]);
        assert_eq!(spool.read("1").unwrap(), b"1");
        assert_eq!(spool.read("5").unwrap().len(), MAX_SIGNED + 1);
        assert!(spool.read("6").is_err());
        assert!(spool.read("7").is_err());

        spool.done("1").unwrap();
        for name in ["2", "5", "6", "7"] {
            spool.refuse(name).unwrap();
        }
        assert_eq!(fs::read(of("2.refused")).unwrap(), b"2");
        // It was there before.
        spool.make().unwrap();
        assert_eq!(spool.waiting().unwrap(), [""; 0]);
        fs::remove_dir_all(&path).unwrap();
    }
}
