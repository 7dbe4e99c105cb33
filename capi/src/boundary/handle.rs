//! The handles: an open blob with the bytes that it lies in, and its tables and its model, read
//! once.
//!
//! A blob borrows from its bytes, and a handle holds both. So what is borrowed is kept as `'static`
//! in private fields, and leaves this file only for as long as the handle is.

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
    // Before the bytes that they borrow from, since fields are dropped in this order.
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
    /// All of the blob's.
    tables: Arc<Vec<ttrec_table>>,
    /// Which says where the model's are among them.
    blob: Blob<'static>,
}

/// The bytes of a blob: where they are does not change when this value moves, nor do they while it
/// lives.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// The caller's.
    Lent(Lent),
    /// On the heap, from an aligned position on.
    Copied { buf: Vec<u8>, start: usize },
    /// A file's.
    Mapped(Mmap),
}

/// Bytes that the caller keeps for as long as the blob is open.
#[derive(Debug)]
pub(crate) struct Lent {
    ptr: *const u8,
    len: usize,
}

// SAFETY: they are only read, whichever thread does.
unsafe impl Send for Lent {}
// SAFETY: they are only read, however many threads do.
unsafe impl Sync for Lent {}

/// Any number of threads may use one handle.
const _: () = {
    const fn shared<T: Send + Sync>() {}
    shared::<ttrec_blob>();
};

impl Given<'_> {
    /// The bytes of a blob that the caller keeps.
    pub(crate) fn lent(&self, ptr: *const c_void, len: usize) -> Result<Bytes, Error<'static>> {
        // No bytes are nowhere, and not misaligned.
        let nowhere = ptr::without_provenance(ALIGNMENT);
        let ptr = if span(ptr.cast::<u8>(), len, "bytes")?.is_some() {
            ptr.cast()
        } else {
            nowhere
        };
        Ok(Bytes::Lent(Lent { ptr, len }))
    }

    /// The bytes of a file, mapped.
    pub(crate) fn map(&self, file: &File) -> io::Result<Bytes> {
        // SAFETY: by the promise the file does not change while the blob is open. (If it does,
        // values change, and a file cut short ends the process: docs/security.md.)
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

    fn place(&self) -> (*const u8, usize) {
        match self {
            Self::Lent(lent) => (lent.ptr, lent.len),
            Self::Copied { buf, start } => (buf[*start..].as_ptr(), buf.len() - start),
            Self::Mapped(map) => (map.as_ptr(), map.len()),
        }
    }
}

impl ttrec_blob {
    /// Parses `bytes` and keeps them.
    pub(crate) fn open(bytes: Bytes) -> Result<Self, Error<'static>> {
        let (ptr, len) = bytes.place();
        // SAFETY: that many bytes are there, and they neither move nor change while `bytes` lives.
        // This handle keeps it, lends what it borrows for no longer than itself, and drops
        // it last.
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

    /// Gives a handle back, which `Box::into_raw` made.
    pub(crate) fn close(_: Caller<'_>, blob: *mut Self) -> Result<(), Error<'static>> {
        if blob.is_null() {
            return Ok(());
        }
        span(blob, 1, "blob")?;
        // SAFETY: by the promise it is open, so it came from a box and was not given back before,
        // and nobody uses it.
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

    /// Its model, if it has one.
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

    /// Its name, up to the first zero if there is one.
    pub(crate) fn name(&self) -> &CStr {
        &self.name
    }
}

impl ttrec_ranker {
    pub(crate) fn ranker(&self) -> &Ranker<'_> {
        &self.ranker
    }

    /// The table whose bags are at `position` of a list.
    pub(crate) fn table(&self, position: usize) -> Option<&ttrec_table> {
        self.tables.get(self.blob.model_tables().nth(position)?.table)
    }
}
