//! Writes a blob section by section, to a file or to memory.

use crate::error::OutputError;
use anyhow::{Context, Result, ensure};
use std::io::{Seek, SeekFrom, Write};
use ttrec::{
    AlignedBuf,
    blob::{Layout, SectionChecksum, SectionPlan},
    limits::ALIGNMENT,
};

/// Writes a blob of this layout to `out`, each section by `write_section`.
///
/// The head holds the sections' checksums, so zeros are written first.
pub(crate) fn write(
    out: &mut (impl Write + Seek),
    mut layout: Layout,
    mut write_section: impl FnMut(&SectionPlan, &mut Sink<'_>) -> Result<()>,
) -> Result<()> {
    let start = out.stream_position().map_err(OutputError)?;
    out.write_all(&vec![0; layout.head().len()]).map_err(OutputError)?;
    for (position, plan) in layout.sections().to_vec().iter().enumerate() {
        let mut put = |bytes: &[u8]| Ok(out.write_all(bytes).map_err(OutputError)?);
        let mut sink = Sink { put: &mut put, checksum: SectionChecksum::new(), len: 0 };
        write_section(plan, &mut sink)?;
        ensure!(
            sink.len == plan.len,
            "section {:?}: wrote {} of {} bytes",
            plan.role,
            sink.len,
            plan.len
        );
        layout.set_checksum(position, sink.finish()?);
    }
    let head = layout.head();
    out.seek(SeekFrom::Start(start))
        .and_then(|_| out.write_all(&head))
        .and_then(|()| out.seek(SeekFrom::End(0)))
        .map_err(OutputError)?;
    Ok(())
}

/// The same in memory.
pub(crate) fn build(
    layout: Layout,
    mut write_section: impl FnMut(&SectionPlan, &mut Sink<'_>) -> Result<()>,
) -> Result<AlignedBuf> {
    let mut failed = None;
    let blob = layout.build(|plan, out| {
        let mut rest = out;
        let mut put = |bytes: &[u8]| {
            let (to, left) = std::mem::take(&mut rest)
                .split_at_mut_checked(bytes.len())
                .context("a section is too long")?;
            to.copy_from_slice(bytes);
            rest = left;
            Ok(())
        };
        let mut sink = Sink { put: &mut put, checksum: SectionChecksum::new(), len: 0 };
        if failed.is_none() {
            failed = write_section(plan, &mut sink).err();
        }
    });
    failed.map_or(Ok(blob), Err)
}

/// A section being written.
pub(crate) struct Sink<'o> {
    put: &'o mut dyn FnMut(&[u8]) -> Result<()>,
    checksum: SectionChecksum,
    len: u64,
}

impl Sink<'_> {
    pub(crate) fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.checksum.update(bytes);
        self.len += bytes.len() as u64;
        (self.put)(bytes)
    }

    /// Pads the section.
    fn finish(self) -> Result<SectionChecksum> {
        let padding = self.len.next_multiple_of(ALIGNMENT as u64) - self.len;
        (self.put)(&vec![0; padding as usize])?;
        Ok(self.checksum)
    }
}
