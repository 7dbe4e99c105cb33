//! Read-only memory mapping of a whole file.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use memmap2::Mmap;

/// A mapped file, or a part of it; clones share the mapping.
#[derive(Clone)]
pub struct Mapped {
    shared: Arc<(Mmap, File)>,
    range: Range<usize>,
}

impl Mapped {
    /// Maps the file at `path`.
    ///
    /// # Errors
    /// If it is not a regular file, or cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        // A directory cannot be mapped, and opening a pipe waits for its writer.
        if !path.metadata()?.is_file() {
            return Err(io::Error::other("not a regular file"));
        }
        let file = File::open(path)?;
        // SAFETY: the mapping is read-only, and what is borrowed from it is plain old data, for
        // which every value is valid, or text that was checked to be UTF-8. Another process may
        // still write to the file: values and text then change while they are borrowed, and
        // truncation ends this process with SIGBUS. docs/security.md says that a mapped file must
        // not change; the alternative is to load gigabytes of table.
        let map = unsafe { Mmap::map(&file) }?;
        Ok(Self { range: 0..map.len(), shared: Arc::new((map, file)) })
    }

    /// The part of these bytes; `None` if they are not all there.
    pub(super) fn part(&self, range: Range<usize>) -> Option<Self> {
        let start = self.range.start.checked_add(range.start)?;
        let end = self.range.start.checked_add(range.end)?;
        (start <= end && end <= self.range.end)
            .then(|| Self { shared: Arc::clone(&self.shared), range: start..end })
    }

    /// Fills `out` from byte `start` on without touching the mapping, whose pages would count as
    /// this process's memory for as long as they are cached.
    pub(super) fn read_at(&self, start: u64, out: &mut [u8]) -> io::Result<()> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::read_exact_at(
            &self.shared.1,
            out,
            start.saturating_add(self.range.start as u64),
        );
        #[cfg(not(unix))]
        {
            let rest = usize::try_from(start).ok().and_then(|start| self.as_ref().get(start..));
            let bytes = rest
                .and_then(|rest| rest.get(..out.len()))
                .ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(bytes);
            Ok(())
        }
    }
}

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        &self.shared.0[self.range.clone()]
    }
}

/// Bytes of the file with a known CRC-32, which is checked once, on first use.
pub(super) struct Checked {
    map: Mapped,
    range: Range<usize>,
    crc32: u32,
    found: OnceLock<Result<(), String>>,
}

impl Checked {
    pub(super) fn new(map: &Mapped, range: Range<usize>, crc32: u32) -> Self {
        Self { map: map.clone(), range, crc32, found: OnceLock::new() }
    }

    /// The result of the check.
    pub(super) fn check(&self) -> Result<(), String> {
        self.found.get_or_init(|| self.compare()).clone()
    }

    fn compare(&self) -> Result<(), String> {
        let (mut hasher, mut block) = (crc32fast::Hasher::new(), vec![0; 1 << 18]);
        for start in self.range.clone().step_by(block.len()) {
            let len = block.len().min(self.range.end - start);
            self.map
                .read_at(start as u64, &mut block[..len])
                .map_err(|error| format!("cannot read: {error}"))?;
            hasher.update(&block[..len]);
        }
        let found = hasher.finalize();
        if found == self.crc32 {
            Ok(())
        } else {
            Err(format!("checksum {found:08x}, expected {:08x}", self.crc32))
        }
    }
}
