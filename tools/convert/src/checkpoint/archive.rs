//! The zip container under `.pt` and `.npz`.

use std::borrow::Cow;
use std::io::{Cursor, Read};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::CheckpointError;
use super::mapped::{Checked, Mapped};

pub(super) type Members = ZipArchive<Cursor<Mapped>>;

/// An archive that `open` has checked.
pub(super) struct Archive {
    pub(super) members: Members,
    /// Names of the members, by index.
    pub(super) names: Vec<String>,
}

/// A member of any size may decompress to this many bytes ...
const FREE_SIZE: u64 = 64 << 20;
/// ... and a larger one to this many times its compressed size. Trained weights hardly compress; a
/// zip bomb reaches 1000.
const MAX_RATIO: u64 = 100;

/// The most bytes that `packed` bytes may decompress to.
pub(super) fn expanded(packed: u64) -> u64 {
    FREE_SIZE.max(packed.saturating_mul(MAX_RATIO))
}

/// Opens the archive and refuses members that could mislead a reader: duplicate names, encryption,
/// unknown compression, and sizes that the file cannot hold.
pub(super) fn open(path: &Path, map: &Mapped) -> Result<Archive, CheckpointError> {
    let malformed = |e: ZipError| CheckpointError::file(path, format!("zip archive: {e}"));
    let bytes = map.as_ref();
    // The directory is at the end, before a comment of up to 64 KiB.
    let end = &bytes[bytes.len().saturating_sub(22 + (64 << 10))..];
    if !end.windows(4).any(|signature| signature == b"PK\x05\x06") {
        let reason = "zip archive (torch or numpy) without an end: it was cut short. Save, copy or \
                      download it again";
        return Err(CheckpointError::file(path, reason));
    }
    let members = ZipArchive::new(Cursor::new(map.clone())).map_err(malformed)?;
    // Decoded as pytorch-reader decodes them: an extra field may give a member another name.
    let names: Vec<String> = members
        .file_names()
        .map(|name| name.map(Cow::into_owned))
        .collect::<Result<_, _>>()
        .map_err(malformed)?;
    if members.has_duplicate_names() {
        let reason = "zip archive: two members of one name, expected distinct names";
        return Err(CheckpointError::file(path, reason));
    }
    let file_len = map.as_ref().len() as u64;
    for (index, name) in names.iter().enumerate() {
        let member = members.by_index_data(index).map_err(malformed)?;
        let (size, packed) = (member.size(), member.compressed_size());
        let limit = match member.compression() {
            CompressionMethod::Stored => Some(packed.min(file_len)),
            CompressionMethod::Deflated if packed <= file_len => Some(expanded(packed)),
            _ => None,
        };
        let reason = match limit {
            _ if member.encrypted() => "encrypted archives are not supported".to_owned(),
            Some(limit) if size <= limit => continue,
            Some(limit) => format!(
                "expands from {packed} to {size} bytes, more than the limit of {limit}: if the \
                 file is genuine, save it uncompressed"
            ),
            None => format!(
                "{packed} bytes compressed by {:?} in a file of {file_len}, expected stored or \
                 deflated",
                member.compression()
            ),
        };
        return Err(CheckpointError::tensor(path, name, reason));
    }
    Ok(Archive { members, names })
}

/// Decompresses a whole member and checks its length and checksum. `open` has bounded the length.
pub(super) fn read(members: &mut Members, index: usize) -> Result<Vec<u8>, String> {
    let member = members.by_index(index).map_err(|e| e.to_string())?;
    let size = member.size();
    let mut bytes = Vec::new();
    // One byte more than declared, so that reading on to the end verifies the checksum.
    member
        .take(size.saturating_add(1))
        .read_to_end(&mut bytes)
        .map_err(|e| e.to_string())?;
    if bytes.len() as u64 != size {
        return Err(format!("{} or more bytes, expected {size}", bytes.len()));
    }
    Ok(bytes)
}

/// The bytes of an uncompressed member in the file, and their checksum, if there is one.
#[derive(Clone)]
pub(super) struct StoredMember {
    pub(super) range: Range<usize>,
    pub(super) checked: Option<Arc<Checked>>,
}

/// The member, if it is not compressed.
pub(super) fn stored(
    map: &Mapped,
    members: &mut Members,
    index: usize,
) -> Result<Option<StoredMember>, String> {
    let member = members.by_index(index).map_err(|e| e.to_string())?;
    let (size, crc32) = (member.size(), member.crc32());
    if member.compression() != CompressionMethod::Stored || member.compressed_size() != size {
        return Ok(None);
    }
    let range = member.data_start().and_then(|start| {
        let end = start.checked_add(size)?;
        let range = usize::try_from(start).ok()?..usize::try_from(end).ok()?;
        (range.end <= map.as_ref().len()).then_some(range)
    });
    // `torch.save` has an option to omit checksums: they are 0 then.
    let checked = |range: &Range<usize>| Arc::new(Checked::new(map, range.clone(), crc32));
    Ok(range.map(|range| StoredMember { checked: (crc32 != 0).then(|| checked(&range)), range }))
}
