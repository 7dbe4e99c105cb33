//! The compressions of Parquet. The crate `parquet` reads Zstandard with a library in C, takes as
//! much memory as the header of a page says, and refuses some pages of several blocks of Hadoop's
//! LZ4.

use crate::data::compressed::Zstd;
use flate2::bufread::MultiGzDecoder;
use parquet::{
    basic::Compression,
    errors::{ParquetError, Result},
};
use std::io::Read;

/// The bytes that any page may have once decompressed.
const MAX_PAGE: usize = 16 << 20;
/// How many times larger than its compressed bytes a page beyond that may be.
const MAX_GROWTH: usize = 1024;

fn damaged() -> ParquetError {
    ParquetError::General("damaged page".to_owned())
}

/// Appends the decompressed bytes of a page to `out`.
pub(super) fn unpack(compression: Compression, page: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let most = MAX_PAGE.max(page.len().saturating_mul(MAX_GROWTH));
    // A page of nulls may have no values to compress.
    if page.is_empty() {
        return Ok(());
    }
    match compression {
        Compression::ZSTD(_) => read(Zstd::new(page), most, out),
        Compression::BROTLI(_) => {
            read(brotli_decompressor::Decompressor::new(page, 1 << 12), most, out)
        }
        Compression::GZIP(_) => read(MultiGzDecoder::new(page), most, out),
        Compression::SNAPPY => {
            let len = snap::raw::decompress_len(page).ok().filter(|&len| len <= most);
            let start = out.len();
            out.resize(start + len.ok_or_else(damaged)?, 0);
            let written = snap::raw::Decoder::new().decompress(page, &mut out[start..]);
            written.map(|_| ()).map_err(|_| damaged())
        }
        Compression::LZ4_RAW => lz4_block(page, most, out).ok_or_else(damaged),
        Compression::LZ4 => lz4(page, most, out).ok_or_else(damaged),
        other => Err(ParquetError::NYI(other.to_string())),
    }
}

fn read(data: impl Read, most: usize, out: &mut Vec<u8>) -> Result<()> {
    let read = data.take(most as u64 + 1).read_to_end(out).map_err(|_| damaged())?;
    if read > most { Err(damaged()) } else { Ok(()) }
}

/// What has been called LZ4: Hadoop's blocks, frames, or a bare block.
fn lz4(page: &[u8], most: usize, out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    if hadoop(page, most, out).is_some() {
        return Some(());
    }
    out.truncate(start);
    if page.starts_with(&[0x04, 0x22, 0x4d, 0x18]) {
        return read(lz4_flex::frame::FrameDecoder::new(page), most, out).ok();
    }
    lz4_block(page, most, out)
}

/// Blocks of Hadoop: the length of each, and then its parts, each with the length that it has while
/// compressed.
fn hadoop(mut page: &[u8], most: usize, out: &mut Vec<u8>) -> Option<()> {
    fn length(page: &mut &[u8]) -> Option<usize> {
        let (length, rest) = page.split_first_chunk()?;
        *page = rest;
        usize::try_from(u32::from_be_bytes(*length)).ok()
    }
    let start = out.len();
    while !page.is_empty() {
        let end = out.len().checked_add(length(&mut page)?)?;
        while out.len() < end {
            let packed = length(&mut page)?;
            let (part, rest) = page.split_at_checked(packed)?;
            page = rest;
            let before = out.len();
            lz4_block(part, most.checked_sub(before - start)?.min(end - before), out)?;
            // A part without bytes would not end.
            if out.len() == before {
                return None;
            }
        }
    }
    Some(())
}

fn lz4_block(block: &[u8], most: usize, out: &mut Vec<u8>) -> Option<()> {
    let len = lz4_len(block).filter(|&len| len <= most)?;
    let start = out.len();
    out.resize(start + len, 0);
    let written = lz4_flex::block::decompress_into(block, &mut out[start..]).ok()?;
    (written == len).then_some(())
}

/// The bytes of a block of LZ4 once decompressed: it does not say how many, so its parts are added
/// up.
fn lz4_len(block: &[u8]) -> Option<usize> {
    let mut bytes = block.iter();
    // 15 goes on in the next bytes, up to one below 255.
    fn number(start: u8, bytes: &mut std::slice::Iter<'_, u8>) -> Option<usize> {
        let (mut sum, mut last) = (usize::from(start), if start == 15 { 255 } else { 0 });
        while last == 255 {
            last = *bytes.next()?;
            sum = sum.checked_add(last.into())?;
        }
        Some(sum)
    }
    let mut len = 0usize;
    loop {
        let token = *bytes.next()?;
        let literals = number(token >> 4, &mut bytes)?;
        len = len.checked_add(literals)?;
        bytes = bytes.as_slice().get(literals..)?.iter();
        if bytes.as_slice().is_empty() {
            return Some(len);
        }
        // The distance to the bytes that are repeated.
        bytes.nth(1)?;
        len = len.checked_add(number(token & 15, &mut bytes)?.checked_add(4)?)?;
    }
}

#[cfg(test)]
mod tests {
    use super::{Compression, lz4_len, unpack};

    fn unpacked(compression: Compression, page: &[u8]) -> Option<Vec<u8>> {
        let mut out = b"levels".to_vec();
        unpack(compression, page, &mut out).ok()?;
        assert!(out.starts_with(b"levels"));
        Some(out.split_off(6))
    }

    #[test]
    fn lz4_is_read_in_all_its_forms() {
        let text: Vec<u8> = (0..300_000u64).map(|at| (at * at / 999 % 251) as u8).collect();
        let zeros = vec![0; 300_000];
        for data in [&text[..], &text[..100], &zeros] {
            let block = lz4_flex::block::compress(data);
            assert_eq!(lz4_len(&block), Some(data.len()));
            assert_eq!(unpacked(Compression::LZ4_RAW, &block).unwrap(), data);
            assert_eq!(unpacked(Compression::LZ4, &block).unwrap(), data);
            // Blocks of unequal lengths, and one block of unequal parts.
            let number = |number: usize| (number as u32).to_be_bytes();
            let (mut blocks, mut parts) = (Vec::new(), number(data.len()).to_vec());
            for part in [&data[..data.len() / 2], &data[data.len() / 2..data.len() - 7]]
                .into_iter()
                .chain([&data[data.len() - 7..]])
            {
                let packed = lz4_flex::block::compress(part);
                let with_len = [&number(packed.len()), &packed[..]].concat();
                parts.extend(&with_len);
                blocks.extend([&number(part.len())[..], &with_len].concat());
            }
            for page in [&blocks, &parts] {
                assert_eq!(unpacked(Compression::LZ4, page).unwrap(), data);
                assert_eq!(unpacked(Compression::LZ4, &page[..page.len() - 1]), None);
            }
        }
    }

    #[test]
    fn a_page_takes_memory_in_proportion_to_its_bytes() {
        // 4 GB as Snappy, 20 MB of one byte as a block of LZ4, and 4 GB as Hadoop's block.
        let snappy = [0xff, 0xff, 0xff, 0xff, 0x0f, 0];
        let block = [&[0x1f, b'a', 1, 0][..], &[255; 80_000], &[0, 0]].concat();
        assert!(lz4_len(&block).is_some_and(|len| len > 20_000_000));
        let hadoop = [&[0xff; 4][..], &[0, 0, 0, 2, 0x10, b'a'], &[0, 0, 0, 1, 0]].concat();
        assert_eq!(unpacked(Compression::SNAPPY, &snappy), None);
        assert_eq!(unpacked(Compression::LZ4, &hadoop), None);
        // 80 kB may become 80 MB.
        assert_eq!(unpacked(Compression::LZ4_RAW, &block).map(|page| page.len()), lz4_len(&block));
        assert_eq!(unpacked(Compression::LZ4_RAW, &block[..8_000]), None);
    }
}
