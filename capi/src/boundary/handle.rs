//! The handles: an open blob with its bytes, and its tables and its model, read once.
//!
//! A blob borrows from its bytes, and the handle holds both. So the handle keeps the borrowing
//! values as `'static` in private fields, and lends them to the rest of the package for no longer
//! than the handle itself is borrowed.

use super::{Caller, Given, span};
use crate::status::Error;
use memmap2::Mmap;
use std::{
    ffi::{CStr, CString, c_void},
    fs::File,
    io, ptr, slice,
    sync::Arc,
};
use ttrec::{Blob, BlobError, NoModel, Ranker, Table, limits::ALIGNMENT};

/// An open blob. Nothing in it changes while it is open.
#[derive(Debug)]
pub struct ttrec_blob {
    // These borrow from the bytes, so they come first: fields are dropped in order.
    blob: Blob<'static>,
    tables: Arc<Vec<ttrec_table>>,
    ranker: Result<ttrec_ranker, NoModel>,
    _bytes: Bytes,
}

/// A table of an open blob.
#[derive(Debug)]
pub struct ttrec_table {
    table: Table<'static>,
    name: CString,
}

/// The model of an open blob.
#[derive(Debug)]
pub struct ttrec_ranker {
    ranker: Ranker<'static>,
    /// All tables of the blob.
    tables: Arc<Vec<ttrec_table>>,
    /// Knows which of the tables are the model's.
    blob: Blob<'static>,
}

/// The bytes of a blob. They do not change while this value lives, and stay where they are when it
/// moves.
#[derive(Debug)]
pub(crate) enum Bytes {
    Borrowed(Borrowed),
    /// The copy is `buf[start..]`: a vector of bytes has no alignment of its own.
    Copied {
        buf: Vec<u8>,
        start: usize,
    },
    Mapped(Mmap),
}

/// Bytes that the caller keeps for as long as the blob is open.
#[derive(Debug)]
pub(crate) struct Borrowed {
    ptr: *const u8,
    len: usize,
}

// SAFETY: the bytes are only read.
unsafe impl Send for Borrowed {}
// SAFETY: the bytes are only read.
unsafe impl Sync for Borrowed {}

/// The header allows any number of threads to use one handle.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<ttrec_blob>();
};

impl Given<'_> {
    /// Bytes that the caller keeps until the blob is closed.
    pub(crate) fn borrowed(&self, ptr: *const c_void, len: usize) -> Result<Bytes, Error<'static>> {
        // Where there are no bytes the pointer may be null or misaligned, which a slice may not be.
        let nowhere = ptr::without_provenance(ALIGNMENT);
        let ptr = if span(ptr.cast::<u8>(), len, "bytes")?.is_some() {
            ptr.cast()
        } else {
            nowhere
        };
        Ok(Bytes::Borrowed(Borrowed { ptr, len }))
    }

    /// The bytes of a file, mapped.
    pub(crate) fn map(&self, file: &File) -> io::Result<Bytes> {
        // SAFETY: by the promise the file does not change while the blob is open. (If it did,
        // values would change, or, if it was shortened, the process end: see docs/security.md.)
        let map = unsafe { Mmap::map(file) }?;
        Ok(Bytes::Mapped(map))
    }
}

impl Bytes {
    /// A copy of `bytes`, aligned.
    pub(crate) fn copied(bytes: &[u8]) -> Result<Self, Error<'static>> {
        let mut buf: Vec<u8> = Vec::new();
        let no_memory = |_| Error::Memory { bytes: bytes.len() };
        buf.try_reserve_exact(bytes.len().saturating_add(ALIGNMENT))
            .map_err(no_memory)?;
        let start = buf.as_ptr().align_offset(ALIGNMENT);
        buf.resize(start, 0);
        buf.extend_from_slice(bytes);
        Ok(Self::Copied { buf, start })
    }

    fn as_raw(&self) -> (*const u8, usize) {
        match self {
            Self::Borrowed(borrowed) => (borrowed.ptr, borrowed.len),
            Self::Copied { buf, start } => (buf[*start..].as_ptr(), buf.len() - start),
            Self::Mapped(map) => (map.as_ptr(), map.len()),
        }
    }
}

impl ttrec_blob {
    /// Parses `bytes` and keeps them.
    pub(crate) fn open(bytes: Bytes) -> Result<Self, Error<'static>> {
        let (ptr, len) = bytes.as_raw();
        // SAFETY: `bytes` has this many bytes, which neither move nor change while it lives. The
        // handle keeps it, lends nothing that borrows from it for longer than itself, and drops it
        // last.
        let borrowed: &'static [u8] = unsafe { slice::from_raw_parts(ptr, len) };
        let blob = Blob::parse(borrowed)?;
        let mut tables = Vec::new();
        let no_memory =
            |_| Error::Memory { bytes: blob.num_tables().saturating_mul(size_of::<ttrec_table>()) };
        tables.try_reserve_exact(blob.num_tables()).map_err(no_memory)?;
        tables.extend(blob.tables().map(ttrec_table::new));
        let tables = Arc::new(tables);
        let ranker =
            blob.ranker()
                .map(|ranker| ttrec_ranker { ranker, tables: tables.clone(), blob });
        Ok(Self { blob, tables, ranker, _bytes: bytes })
    }

    /// Frees a handle that `Box::into_raw` made.
    pub(crate) fn close(_: Caller<'_>, blob: *mut Self) -> Result<(), Error<'static>> {
        if blob.is_null() {
            return Ok(());
        }
        span(blob, 1, "blob")?;
        // SAFETY: by the promise it is open: it came from a box, was not closed before, and no
        // other thread uses it.
        drop(unsafe { Box::from_raw(blob) });
        Ok(())
    }

    pub(crate) fn tables(&self) -> &[ttrec_table] {
        &self.tables
    }

    pub(crate) fn table<'c>(&'c self, name: &'c CStr) -> Result<&'c ttrec_table, Error<'c>> {
        let name = name.to_str().map_err(|_| Error::NameNotUtf8)?;
        // Tables are in the byte order of their names.
        let position = self.tables.binary_search_by(|table| table.table.name().cmp(name));
        let table = position.ok().and_then(|position| self.tables.get(position));
        table.ok_or(Error::NoSuchTable { name })
    }

    pub(crate) fn ranker(&self) -> Result<&ttrec_ranker, NoModel> {
        self.ranker.as_ref().map_err(|&error| error)
    }

    pub(crate) fn verify_payload(&self) -> Result<(), BlobError> {
        self.blob.verify_payload()
    }
}

impl ttrec_table {
    fn new(table: Table<'static>) -> Self {
        let name = table.name().split('\0').next().unwrap_or_default();
        Self { table, name: CString::new(name).unwrap_or_default() }
    }

    pub(crate) fn table(&self) -> &Table<'_> {
        &self.table
    }

    /// The table's name, up to its first zero byte.
    pub(crate) fn name(&self) -> &CStr {
        &self.name
    }
}

impl ttrec_ranker {
    pub(crate) fn ranker(&self) -> &Ranker<'_> {
        &self.ranker
    }

    /// The model's table at `position`.
    pub(crate) fn table(&self, position: usize) -> Option<&ttrec_table> {
        self.tables.get(self.blob.model_tables().nth(position)?.table)
    }
}
