//! Indexes of FAISS (`faiss.write_index`) whose vectors are codes: `IndexPQ`,
//! `IndexResidualQuantizer`, and either after one linear transform, such as OPQ's rotation. Numbers
//! are little-endian and unaligned.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::mapped::Mapped;
use super::tensor::{Data, DecodedCache, ElementLayout};
use super::{CheckpointError, Contents, ElementType, Tensor};

/// The entry of [`Contents::metadata`] that says how entries are combined.
pub(crate) const COMBINE: &str = "combine";

const PRODUCT: [u8; 4] = *b"IxPq";
const RESIDUAL: [u8; 4] = *b"IxRq";
const TRANSFORMED: [u8; 4] = *b"IxPT";
/// A linear transform, a random rotation, and a PCA matrix, which has fields of its own.
const TRANSFORMS: [[u8; 4]; 2] = [*b"LTra", *b"rrot"];

/// The last of the types of search of an additive quantiser that store a norm, if any, after the
/// codes, and nothing else in the file.
const LAST_SEARCH_TYPE: u32 = 5;
/// As many columns as a blob's table may have.
const MAX_COLUMNS: usize = 1 << 16;

/// Whether a file with these bytes is an index of FAISS. A number that FAISS always writes after
/// the type, the columns and the rows tells it from text.
pub(super) fn is_index(bytes: &[u8]) -> bool {
    bytes.starts_with(b"Ix") && bytes.get(16..24) == Some(&(1u64 << 20).to_le_bytes()[..])
}

pub(super) fn read(path: &Arc<Path>, map: &Mapped) -> Result<Contents, CheckpointError> {
    let mut file = Cursor { bytes: map.as_ref(), at: 0 };
    let index = file
        .index()
        .and_then(|index| index.check(map.as_ref()).map(|()| index))
        .map_err(|reason| CheckpointError::file(path, format!("FAISS index: {reason}")))?;
    let tensor = |name: &str, kind, shape: &[usize], data| {
        let shape = shape.iter().map(|&n| n as u64).collect();
        Tensor::new(path, name.to_owned(), kind, shape, ElementLayout::ROW_MAJOR_LE, data)
    };
    let floats = |range: &Range<usize>| Data::Mapped(map.clone(), range.clone(), None);
    let Codes { rows, row_len, bits, .. } = index.codes;
    let num_books = index.num_books;
    let codes = if bits == 8 && row_len == num_books {
        let data = Data::Mapped(map.clone(), index.codes.range.clone(), None);
        tensor("codes", ElementType::U8, &[rows, num_books], data)?
    } else {
        let (map, range) = (map.clone(), index.codes.range.clone());
        let load = move || -> Result<Vec<u8>, String> {
            let packed = map.as_ref().get(range.clone()).ok_or("the file became shorter")?;
            let rows = packed.chunks_exact(row_len);
            Ok(rows
                .flat_map(|row| unpack(row, num_books, bits))
                .flat_map(u16::to_le_bytes)
                .collect())
        };
        let cache = Arc::new(DecodedCache::default());
        let data = Data::Decoded { cache, id: 0, load: Box::new(load) };
        tensor("codes", ElementType::U16, &[rows, num_books], data)?
    };
    let shape = [num_books, 1 << bits, index.entry_len];
    let mut tensors = vec![codes, tensor("books", ElementType::F32, &shape, floats(&index.books))?];
    if let Some(Transform { range, input, output }) = &index.transform {
        tensors.push(tensor("projection", ElementType::F32, &[*output, *input], floats(range))?);
    }
    let metadata = [(COMBINE.to_owned(), index.combine.to_owned())].into();
    Ok(Contents { tensors, metadata, ..Contents::default() })
}

/// The codes of a row, each of `bits` bits, the lowest first.
fn unpack(row: &[u8], num_books: usize, bits: usize) -> impl Iterator<Item = u16> {
    (0..num_books).map(move |book| {
        let first = book * bits;
        let bytes = row.iter().skip(first / 8).take(3).rev();
        let word = bytes.fold(0u32, |word, &byte| word << 8 | u32::from(byte));
        (word >> (first % 8) & ((1 << bits) - 1)) as u16
    })
}

/// Where the parts of an index are in the file.
struct Index {
    combine: &'static str,
    num_books: usize,
    /// Columns of an entry.
    entry_len: usize,
    books: Range<usize>,
    codes: Codes,
    transform: Option<Transform>,
}

struct Codes {
    range: Range<usize>,
    rows: usize,
    row_len: usize,
    /// Bits of a code.
    bits: usize,
}

/// A matrix, `output x input`, row-major.
struct Transform {
    range: Range<usize>,
    input: usize,
    output: usize,
}

impl Index {
    /// Checks that the transform can be undone by its transpose.
    fn check(&self, bytes: &[u8]) -> Result<(), String> {
        let Some(Transform { range, input, output }) = &self.transform else { return Ok(()) };
        let matrix = bytes.get(range.clone()).unwrap_or_default();
        let matrix: Vec<f64> = matrix
            .chunks_exact(4)
            .map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]]).into())
            .collect();
        // Orthonormal rows give a vector back after the transpose and the matrix.
        let probe = |at: usize| if (at * at + at / 3) % 7 < 3 { 1.0 } else { -1.0 };
        let mut sums = vec![0.0; *input];
        for (at, row) in matrix.chunks_exact(*input).enumerate() {
            sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x * probe(at));
        }
        let tolerance = 1e-3 * (*output as f64).sqrt();
        let is_near = |(at, row): (usize, &[f64])| {
            let found: f64 = row.iter().zip(&sums).map(|(x, sum)| x * sum).sum();
            (found - probe(at)).abs() < tolerance
        };
        if matrix.chunks_exact(*input).enumerate().all(is_near) {
            Ok(())
        } else {
            Err("the rows of its linear transform are not orthonormal, so that its transpose does \
                 not undo it"
                .to_owned())
        }
    }
}

/// Reads numbers of hostile bytes.
struct Cursor<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let found = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<N>());
        let found = found.ok_or("the file ends too early: was it cut short?")?;
        self.at += N;
        Ok(*found)
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.take().map(u32::from_le_bytes)
    }

    fn size(&mut self) -> Result<usize, String> {
        let found = u64::from_le_bytes(self.take()?);
        usize::try_from(found).map_err(|_| format!("a size is {found}"))
    }

    /// A vector of elements of `size` bytes: where they are.
    fn vector(&mut self, size: usize) -> Result<Range<usize>, String> {
        let count = self.size()?;
        let left = self.bytes.len().saturating_sub(self.at);
        let len = count.checked_mul(size).filter(|&len| len <= left);
        let len = len.ok_or_else(|| format!("a vector of {count} elements in {left} bytes"))?;
        self.at += len;
        Ok(self.at - len..self.at)
    }

    /// Columns and rows.
    fn header(&mut self) -> Result<[usize; 2], String> {
        let columns = self.u32()? as usize;
        let rows = self.size()?;
        self.take::<16>()?;
        let [is_trained] = self.take()?;
        // Some metrics have an argument.
        if self.u32()? > 1 {
            self.take::<4>()?;
        }
        if is_trained != 1 || rows == 0 {
            return Err("it is not trained, or has no vectors".to_owned());
        }
        if !(1..=MAX_COLUMNS).contains(&columns) {
            return Err(format!("{columns} columns: expected 1 to {MAX_COLUMNS}"));
        }
        Ok([columns, rows])
    }

    fn index(&mut self) -> Result<Index, String> {
        let fourcc = self.take()?;
        let [columns, rows] = self.header()?;
        let index = match fourcc {
            PRODUCT => self.product([columns, rows])?,
            RESIDUAL => self.residual([columns, rows])?,
            TRANSFORMED => self.transformed([columns, rows])?,
            other => {
                return Err(format!(
                    "of type {:?}: expected IndexPQ, IndexResidualQuantizer, or one of them after \
                     a linear transform; from any other, save index.reconstruct_n(0, \
                     index.ntotal) with numpy.save",
                    String::from_utf8_lossy(&other)
                ));
            }
        };
        if self.at != self.bytes.len() {
            let left = self.bytes.len() - self.at;
            return Err(format!("{left} bytes follow it: another version of FAISS wrote it"));
        }
        Ok(index)
    }

    fn product(&mut self, [columns, rows]: [usize; 2]) -> Result<Index, String> {
        let [found, num_books, bits] = [self.size()?, self.size()?, self.size()?];
        let books = self.vector(4)?;
        let codes = self.vector(1)?;
        // How to search, whether signs are coded, and a threshold.
        let [.., signs, _, _, _, _] = self.take::<9>()?;
        let entry_len = columns.checked_div(num_books).unwrap_or(0);
        if found != columns || entry_len * num_books != columns || signs != 0 {
            return Err(format!("{num_books} books for {found} of {columns} columns"));
        }
        let codes = Codes::new(codes, [rows, num_books], bits, None)?;
        Index::new("concat", [num_books, entry_len], books, codes)
    }

    fn residual(&mut self, [columns, rows]: [usize; 2]) -> Result<Index, String> {
        let [found, num_books] = [self.size()?, self.size()?];
        let all_bits = self.vector(8)?;
        let mut bits = self.bytes[all_bits].chunks_exact(8);
        let first = bits.next().unwrap_or_default();
        if bits.len() + 1 != num_books || bits.any(|other| other != first) {
            return Err("its books have different sizes".to_owned());
        }
        let bits = first.iter().rev().fold(0usize, |bits, &byte| bits << 8 | usize::from(byte));
        let [is_trained] = self.take()?;
        let books = self.vector(4)?;
        let search_type = self.u32()?;
        // The range of norms, and how it was trained.
        self.take::<16>()?;
        let row_len = self.size()?;
        let codes = self.vector(1)?;
        if found != columns || is_trained != 1 || search_type > LAST_SEARCH_TYPE {
            return Err(format!("{found} of {columns} columns, search type {search_type}"));
        }
        let codes = Codes::new(codes, [rows, num_books], bits, Some(row_len))?;
        Index::new("add", [num_books, columns], books, codes)
    }

    fn transformed(&mut self, [columns, rows]: [usize; 2]) -> Result<Index, String> {
        let count = self.u32()?;
        let fourcc = self.take()?;
        if count != 1 || !TRANSFORMS.contains(&fourcc) {
            return Err(format!(
                "{count} transforms, the first of type {:?}: expected one linear transform",
                String::from_utf8_lossy(&fourcc)
            ));
        }
        let [has_bias] = self.take()?;
        let range = self.vector(4)?;
        self.vector(4)?;
        let [input, output] = [self.u32()? as usize, self.u32()? as usize];
        self.take::<1>()?;
        let len = input.checked_mul(output).and_then(|len| len.checked_mul(4));
        if has_bias != 0 || input != columns || output == 0 || len != Some(range.len()) {
            return Err(format!(
                "a transform of {input} to {output} columns in {} bytes: expected {columns} \
                 columns, and no bias",
                range.len()
            ));
        }
        let fourcc = self.take()?;
        let header = self.header()?;
        if header != [output, rows] {
            let [columns, rows] = header;
            return Err(format!("{rows} x {columns} codes after a transform to {output} columns"));
        }
        let index = match fourcc {
            PRODUCT => self.product(header)?,
            RESIDUAL => self.residual(header)?,
            other => {
                let found = String::from_utf8_lossy(&other);
                return Err(format!("of type {found:?} after a transform"));
            }
        };
        Ok(Index { transform: Some(Transform { range, input, output }), ..index })
    }
}

impl Codes {
    /// Rows of codes, and what follows them in rows of `row_len` bytes, if that is given.
    fn new(
        range: Range<usize>,
        [rows, num_books]: [usize; 2],
        bits: usize,
        row_len: Option<usize>,
    ) -> Result<Self, String> {
        if !(1..=16).contains(&bits) || !(1..=MAX_COLUMNS).contains(&num_books) {
            return Err(format!("{num_books} codes of {bits} bits: expected 1 to 16 bits"));
        }
        let least = (num_books * bits).div_ceil(8);
        let row_len = row_len.unwrap_or(least);
        if row_len < least || rows.checked_mul(row_len) != Some(range.len()) {
            return Err(format!("{rows} rows of {row_len} bytes in {} bytes", range.len()));
        }
        Ok(Self { range, rows, row_len, bits })
    }
}

impl Index {
    fn new(
        combine: &'static str,
        [num_books, entry_len]: [usize; 2],
        books: Range<usize>,
        codes: Codes,
    ) -> Result<Self, String> {
        // At most 2^16 books of 2^16 entries of 2^16 columns.
        let expected = (num_books as u64 * entry_len as u64 * 4) << codes.bits;
        if books.len() as u64 != expected {
            return Err(format!("books of {} bytes: expected {expected}", books.len()));
        }
        Ok(Self { combine, num_books, entry_len, books, codes, transform: None })
    }
}
