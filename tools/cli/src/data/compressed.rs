//! Files that may be compressed, as their first bytes say.

use anyhow::{Context, Result, bail};
use flate2::bufread::MultiGzDecoder;
use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, ErrorKind, Read},
    path::Path,
};

/// The most memory for decompressing xz, in KiB. Its largest preset takes 65 MiB.
const MAX_XZ_MEMORY: u32 = 256 << 10;

/// Opens a file of text, which may be compressed with gzip, bzip2, xz or Zstandard.
pub(super) fn open(path: &Path) -> Result<Box<dyn Read>> {
    let place = path.display();
    let file = File::open(path).with_context(|| format!("{place}: cannot open"))?;
    let mut file = BufReader::with_capacity(1 << 18, file);
    let start = file.fill_buf().with_context(|| format!("{place}: cannot read"))?;
    let (format, data): (_, Box<dyn Read>) = match start {
        [0x1f, 0x8b, ..] => ("gzip", Box::new(MultiGzDecoder::new(file))),
        [b'B', b'Z', b'h', b'1'..=b'9', b'1', b'A', b'Y', ..]
        | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, ..] => {
            ("bzip2", Box::new(bzip2::bufread::MultiBzDecoder::new(file)))
        }
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => {
            ("xz", Box::new(lzma_rust2::XzReader::new_mem_limit(file, true, MAX_XZ_MEMORY)))
        }
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
            ("Zstandard", Box::new(Zstd::new(file)))
        }
        [b'P', b'K', 3, 4, ..] => bail!("{place}: is a zip archive: extract its files"),
        [b'P', b'A', b'R', b'1', ..] => {
            bail!("{place}: is a Parquet file: set `format = \"parquet\"`")
        }
        [0x04, 0x22, 0x4d, 0x18, ..] => bail!(
            "{place}: is compressed with LZ4: decompress it, or compress it with gzip, bzip2, xz \
             or Zstandard"
        ),
        _ => return Ok(Box::new(file)),
    };
    Ok(Box::new(Compressed { format, data }))
}

/// Compressed data, whose errors say what is wrong with them.
struct Compressed {
    format: &'static str,
    data: Box<dyn Read>,
}

impl Read for Compressed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        self.data.read(out).map_err(|error| {
            let (kind, format) = (error.kind(), self.format);
            let text = match kind {
                ErrorKind::Interrupted => return error,
                ErrorKind::UnexpectedEof => format!("its {format} data end too early"),
                ErrorKind::OutOfMemory => format!("its {format} data need too much memory"),
                _ => format!("its {format} data are damaged"),
            };
            io::Error::new(kind, text)
        })
    }
}

/// Decompresses the frames of Zstandard.
pub(super) struct Zstd<R> {
    data: R,
    decoder: FrameDecoder,
}

impl<R: BufRead> Zstd<R> {
    pub(super) fn new(data: R) -> Self {
        Self { data, decoder: FrameDecoder::new() }
    }

    /// Begins the next frame, if there is one.
    fn begin(&mut self) -> io::Result<bool> {
        while !self.data.fill_buf()?.is_empty() {
            match self.decoder.reset(&mut self.data) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let skipped =
                        io::copy(&mut (&mut self.data).take(length.into()), &mut io::sink())?;
                    if skipped < length.into() {
                        return Err(ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(FrameDecoderError::WindowSizeTooBig { .. }) => {
                    return Err(ErrorKind::OutOfMemory.into());
                }
                Err(_) => return Err(self.damaged()),
            }
        }
        Ok(false)
    }

    /// The error of a decoder that has read the data until a byte that is wrong or missing.
    fn damaged(&mut self) -> io::Error {
        match self.data.fill_buf() {
            Ok([]) => ErrorKind::UnexpectedEof.into(),
            Ok(_) => ErrorKind::InvalidData.into(),
            Err(error) => error,
        }
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let count = self.decoder.read(out)?;
            if count > 0 || out.is_empty() {
                return Ok(count);
            }
            if !self.decoder.is_finished() {
                let strategy = BlockDecodingStrategy::UptoBlocks(1);
                if self.decoder.decode_blocks(&mut self.data, strategy).is_err() {
                    return Err(self.damaged());
                }
                continue;
            }
            let sum = self.decoder.get_checksum_from_data();
            if sum.is_some() && sum != self.decoder.get_calculated_checksum() {
                return Err(ErrorKind::InvalidData.into());
            }
            if !self.begin()? {
                return Ok(0);
            }
        }
    }
}
