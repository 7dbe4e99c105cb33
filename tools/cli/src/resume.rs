//! Finished factorisations: in a directory (`ttrec convert --resume`), or in memory (`ttrec plan`).

use crate::output::Output;
use anyhow::{Context, Result};
use std::{
    cell::RefCell,
    collections::HashMap,
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
};
use ttrec_convert::ResumeCache;

/// A directory with one file for each factorisation.
pub(crate) struct ResumeDirectory(PathBuf);

impl ResumeDirectory {
    /// Opens the directory, and makes it if it does not exist.
    pub(crate) fn open(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory)
            .with_context(|| format!("{}: cannot create", directory.display()))?;
        Ok(Self(directory.to_owned()))
    }

    fn path(&self, key: &str) -> PathBuf {
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        self.0.join(format!("{:016x}.safetensors", hasher.finish()))
    }
}

impl ResumeCache for ResumeDirectory {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        fs::read(self.path(key)).ok()
    }

    fn put(&self, key: &str, bytes: &[u8]) -> io::Result<()> {
        let mut output = Output::create(&self.path(key)).map_err(io::Error::other)?;
        output.write(|file| file.write_all(bytes)).map_err(io::Error::other)?;
        output.commit().map_err(io::Error::other)
    }

    fn remove(&self, key: &str) {
        let _ = fs::remove_file(self.path(key));
    }
}

/// Factorisations in memory, for conversions of one process that share some. When they would take
/// more than the limit, all of them are dropped.
pub(crate) struct ResumeMemory {
    kept: RefCell<HashMap<String, Vec<u8>>>,
    /// The most bytes to keep.
    limit: u64,
}

impl ResumeMemory {
    pub(crate) fn new(limit: u64) -> Self {
        Self { kept: RefCell::default(), limit }
    }
}

impl ResumeCache for ResumeMemory {
    fn get(&self, key: &str) -> Option<Vec<u8>> {
        self.kept.borrow().get(key).cloned()
    }

    fn put(&self, key: &str, bytes: &[u8]) -> io::Result<()> {
        let (mut kept, len) = (self.kept.borrow_mut(), bytes.len() as u64);
        if len > self.limit {
            return Ok(());
        }
        let held: u64 = kept.values().map(|bytes| bytes.len() as u64).sum();
        if held + len > self.limit {
            kept.clear();
        }
        kept.insert(key.to_owned(), bytes.to_owned());
        Ok(())
    }

    fn remove(&self, key: &str) {
        self.kept.borrow_mut().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_stays_within_the_limit() {
        let kept = ResumeMemory::new(10);
        kept.put("a", &[1; 4]).unwrap();
        kept.put("b", &[2; 6]).unwrap();
        assert_eq!(kept.get("a"), Some(vec![1; 4]));
        assert_eq!(kept.get("b"), Some(vec![2; 6]));
        // Larger than the limit: nothing makes room for it.
        kept.put("c", &[3; 11]).unwrap();
        assert_eq!((kept.get("c"), kept.get("a")), (None, Some(vec![1; 4])));
        kept.put("d", &[4; 1]).unwrap();
        assert_eq!((kept.get("a"), kept.get("b"), kept.get("d")), (None, None, Some(vec![4])));
        kept.remove("d");
        assert_eq!(kept.get("d"), None);
    }
}
