//! Numbers as an array in a .npy file, or as named ones in an npz file.

use crate::output::Output;
use anyhow::Result;
use npyz::{AutoSerialize, WriterBuilder};
use std::{io::Cursor, path::Path};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// Writes a .npy array of this shape, row-major.
pub(crate) fn write_npy(path: &Path, shape: &[u64], values: &[f32]) -> Result<()> {
    let mut output = Output::create(path)?;
    output.write(|file| {
        let mut npy =
            npyz::WriteOptions::new().default_dtype().shape(shape).writer(file).begin_nd()?;
        npy.extend(values.iter().copied())?;
        npy.finish()
    })?;
    Ok(output.commit()?)
}

/// Arrays, gathered in memory.
pub(crate) struct Npz(ZipWriter<Cursor<Vec<u8>>>);

impl Npz {
    pub(crate) fn new() -> Self {
        Self(ZipWriter::new(Cursor::new(Vec::new())))
    }

    /// Adds an array of this shape, row-major.
    pub(crate) fn add<T: AutoSerialize + Copy>(
        &mut self,
        name: &str,
        shape: &[u64],
        values: &[T],
    ) -> Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(true);
        self.0.start_file(format!("{name}.npy"), options)?;
        let mut npy = npyz::WriteOptions::new()
            .default_dtype()
            .shape(shape)
            .writer(&mut self.0)
            .begin_nd()?;
        npy.extend(values.iter().copied())?;
        Ok(npy.finish()?)
    }

    /// Writes the file.
    pub(crate) fn write(self, path: &Path) -> Result<()> {
        let file = self.0.finish()?;
        let mut output = Output::create(path)?;
        output.write(|out| out.write_all(file.get_ref()))?;
        Ok(output.commit()?)
    }
}
