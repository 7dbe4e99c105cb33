//! A blob on disk: mapped, parsed, and named in every error; or streamed to its place.

use crate::{checkpoint::Mapped, output::Output, progress::Progress};
use anyhow::{Context, Result, anyhow, ensure};
use std::path::{Path, PathBuf};
use ttrec::{
    AlignedBuf, Blob, NoSuchTable, Table, Tier,
    blob::{Layout, SectionChecksum, SectionPlan},
    limits::ALIGNMENT,
};

/// A mapped blob file.
pub(crate) struct BlobFile {
    path: PathBuf,
    bytes: Mapped,
}

impl BlobFile {
    /// Maps the file at `path`; [`blob`](Self::blob) parses it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let bytes =
            Mapped::open(path).with_context(|| format!("{}: cannot open", path.display()))?;
        Ok(Self { path: path.to_owned(), bytes })
    }

    /// The parsed blob.
    pub(crate) fn blob(&self) -> Result<Blob<'_>> {
        Blob::parse(self.bytes.as_ref())
            .with_context(|| format!("{}: not a usable blob", self.path.display()))
    }

    /// The blob as it is.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.as_ref()
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The table called `name`; the error lists what there is.
    pub(crate) fn table<'b>(&self, blob: &Blob<'b>, name: &str) -> Result<Table<'b>> {
        let tier = tier()?;
        blob.table(name).map(|table| table.with_tier(tier)).map_err(|NoSuchTable| {
            let names: Vec<&str> = blob.tables().map(|table| table.name()).collect();
            anyhow!("{}: no table {name:?}: it has {names:?}", self.path.display())
        })
    }
}

/// Reads the whole payload: what is wrong with it, if anything is.
pub(crate) fn damage(blob: &Blob<'_>) -> Option<String> {
    let mut progress = Progress::new("checksums", (blob.num_tables() + blob.num_layers()) as u64);
    let of_tables = blob.tables().find_map(|table| {
        progress.add(1);
        let error = table.verify().err()?;
        Some(format!("table {:?}: {error}", table.name()))
    });
    of_tables.or_else(|| blob.verify_model().err().map(|error| error.to_string()))
}

/// Writes a blob of this layout to `path`, each section by `write_section`; returns its length in
/// bytes.
pub(crate) fn write(
    path: &Path,
    mut layout: Layout,
    mut write_section: impl FnMut(&SectionPlan, &mut Sink<'_>) -> Result<()>,
) -> Result<u64> {
    let mut output = Output::create(path)?;
    let head_len = layout.head().len();
    output.write(|file| file.write_all(&vec![0; head_len]))?;
    for (position, plan) in layout.sections().to_vec().iter().enumerate() {
        let mut put = |bytes: &[u8]| Ok(output.write(|file| file.write_all(bytes))?);
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
    output.overwrite_start(&layout.head())?;
    output.commit()?;
    Ok(layout.total_len())
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
    /// Writes the next bytes.
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

/// The instructions to use: the best that this CPU has, or the tier that `TTREC_ISA` names.
pub(crate) fn tier() -> Result<Tier> {
    let Some(name) = std::env::var_os("TTREC_ISA") else { return Ok(Tier::best()) };
    let tier = name.to_str().and_then(Tier::from_name);
    tier.ok_or_else(|| {
        let names: Vec<&str> = Tier::available().map(Tier::name).collect();
        anyhow!("TTREC_ISA={}: this CPU has {names:?}", name.display())
    })
}
