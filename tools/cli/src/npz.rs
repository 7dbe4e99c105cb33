//! Writes arrays to .npy and .npz files.

use crate::output::Output;
use anyhow::Result;
use bytemuck::NoUninit;
use std::{
    io::{self, Cursor, Write},
    path::Path,
};
use zip::{CompressionMethod, ZipWriter, write::SimpleFileOptions};

/// A number that an array can hold.
pub(crate) trait Number: NoUninit {
    /// numpy's name of the type, without the byte order.
    const NAME: &str;
}

impl Number for f32 {
    const NAME: &str = "f4";
}

impl Number for u32 {
    const NAME: &str = "u4";
}

impl Number for u64 {
    const NAME: &str = "u8";
}

impl Number for i64 {
    const NAME: &str = "i8";
}

/// Writes a .npy array of this shape, row-major.
pub(crate) fn write_npy(path: &Path, shape: &[u64], values: &[f32]) -> Result<()> {
    let mut output = Output::create(path)?;
    output.write(|file| write_array(file, shape, values))?;
    Ok(output.commit()?)
}

fn write_array<T: Number>(out: &mut dyn Write, shape: &[u64], values: &[T]) -> io::Result<()> {
    let order = if cfg!(target_endian = "little") { '<' } else { '>' };
    let extents: Vec<String> = shape.iter().map(u64::to_string).collect();
    // A Python tuple, as numpy prints it: files of the same array are then equal.
    let (extents, end) = (extents.join(", "), if shape.len() == 1 { "," } else { "" });
    let mut dict = format!(
        "{{'descr': '{order}{}', 'fortran_order': False, 'shape': ({extents}{end}), }}",
        T::NAME
    );
    // Version 1.0; the data begin at a multiple of 64 bytes.
    let len = (10 + dict.len() + 1).next_multiple_of(64);
    dict += &" ".repeat(len - 10 - dict.len() - 1);
    out.write_all(b"\x93NUMPY\x01\x00")?;
    out.write_all(&((len - 10) as u16).to_le_bytes())?;
    writeln!(out, "{dict}")?;
    out.write_all(bytemuck::cast_slice(values))
}

/// An npz file, built in memory.
pub(crate) struct Npz(ZipWriter<Cursor<Vec<u8>>>);

impl Npz {
    pub(crate) fn new() -> Self {
        Self(ZipWriter::new(Cursor::new(Vec::new())))
    }

    /// Adds an array of this shape, row-major.
    pub(crate) fn add<T: Number>(&mut self, name: &str, shape: &[u64], values: &[T]) -> Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .large_file(true);
        self.0.start_file(format!("{name}.npy"), options)?;
        Ok(write_array(&mut self.0, shape, values)?)
    }

    pub(crate) fn write(self, path: &Path) -> Result<()> {
        let file = self.0.finish()?;
        let mut output = Output::create(path)?;
        output.write(|out| out.write_all(file.get_ref()))?;
        Ok(output.commit()?)
    }
}
