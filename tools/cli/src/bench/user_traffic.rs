//! `ttrec bench BLOB --bags`: measures a table and traffic of the user.

use super::{
    roofline::{Caches, Roofline},
    traffic::Run,
};
use crate::{
    bags_file::{BagsFile, Mode},
    blob_file::BlobFile,
};
use anyhow::{Context, Result, bail};
use ttrec::{Table, repr::Weights};

/// The measurement of a table and a file of bags.
pub(super) struct UserTiming {
    pub(super) table: String,
    pub(super) bags: usize,
    pub(super) lookups: usize,
    /// Seconds to pool all bags.
    pub(super) seconds: f64,
    /// Floating-point operations of computing one row alone, for a tensor train.
    pub(super) flops: Option<f64>,
    pub(super) workspace_bytes: usize,
}

/// Pools the bags of `file` as one batch, from the table called `name` or the only one.
pub(super) fn measure(
    roofline: &mut Roofline,
    blob_file: &BlobFile,
    name: Option<&str>,
    file: &BagsFile,
    mode: Mode,
) -> Result<UserTiming> {
    let blob = blob_file.blob()?;
    let names: Vec<&str> = blob.tables().map(|table| table.name()).collect();
    let name = match (name, names.as_slice()) {
        (Some(name), _) | (None, &[name]) => name,
        (None, _) => {
            bail!(
                "{}: the blob has several tables: pass --table with one of {names:?}",
                blob_file.path().display()
            )
        }
    };
    let table = blob_file.table(&blob, name)?;
    measure_table(roofline, table, file, mode)
        .with_context(|| format!("{}: table {name:?}", file.path().display()))
}

fn measure_table(
    roofline: &mut Roofline,
    table: Table<'_>,
    file: &BagsFile,
    mode: Mode,
) -> Result<UserTiming> {
    let offsets = file.offsets(mode)?;
    let mut run = Run::of_bags(vec![table], vec![file.bags(&offsets)?], mode.pooling())?;
    run.check(table.name())?;
    let [seconds] = roofline.fastest(Caches::Warm, [run.pass()])?;
    Ok(UserTiming {
        table: table.name().to_owned(),
        bags: offsets.len().saturating_sub(1),
        lookups: run.lookups(),
        seconds,
        flops: match table.data().weights() {
            Weights::Tt(tt) => Some(tt.shape().flops_left_to_right() as f64),
            _ => None,
        },
        workspace_bytes: run.workspace_bytes(),
    })
}
