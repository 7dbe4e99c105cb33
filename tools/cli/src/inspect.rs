//! `ttrec inspect`: prints the directory of a blob.

use crate::{blob_file::BlobFile, outcome::Outcome, output};
use anyhow::Result;
use serde::{Serialize, Serializer};
use std::{
    io::{self, Write},
    path::PathBuf,
};
use ttrec::{
    Blob, DigitOrder, Pooling,
    blob::Layer,
    dtype::Dtype,
    repr::{IndexMap, Weights},
};
use ttrec_convert::StoredAs;

/// Show what a blob holds.
///
/// Reads only the header and the directory. `verify` reads everything.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// A blob
    blob: PathBuf,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
pub(crate) struct BlobSummary {
    pub(crate) format_version: u32,
    pub(crate) bytes: u64,
    pub(crate) dense_f32_bytes: u64,
    pub(crate) tables: Vec<TableSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) model: Option<ModelSummary>,
}

#[derive(Serialize)]
pub(crate) struct ModelSummary {
    num_dense: usize,
    embedding_dim: usize,
    interaction: &'static str,
    /// Names, in the order of the interaction.
    tables: Vec<String>,
    /// How each of these tables pools the rows of a bag.
    poolings: Vec<&'static str>,
    pub(crate) layers: Vec<LayerSummary>,
    workspace_len: usize,
}

#[derive(Serialize)]
pub(crate) struct LayerSummary {
    stack: &'static str,
    inputs: usize,
    outputs: usize,
    activation: &'static str,
    dtype: &'static str,
    bytes: u64,
}

#[derive(Serialize)]
pub(crate) struct TableSummary {
    pub(crate) name: String,
    pub(crate) representation: StoredAs,
    #[serde(serialize_with = "dtype_name")]
    pub(crate) dtype: Dtype,
    pub(crate) num_embeddings: u64,
    pub(crate) embedding_dim: usize,
    pub(crate) bytes: u64,
    pub(crate) dense_f32_bytes: u64,
    pub(crate) overrides: usize,
    pub(crate) prefix_products: usize,
    pub(crate) workspace_len: usize,
    index_map: &'static str,
    pub(crate) num_rows: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) tt: Option<TtSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) projected: Option<ProjectedSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) quotient_remainder: Option<QuotientRemainderSummary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) codebook: Option<CodebookSummary>,
}

#[derive(Serialize)]
pub(crate) struct CodebookSummary {
    pub(crate) num_books: usize,
    pub(crate) book_len: usize,
    inner_dim: usize,
    combine: &'static str,
    /// The name of the codes' type.
    codes: &'static str,
    /// The name of the matrix's type.
    #[serde(skip_serializing_if = "Option::is_none")]
    projection: Option<&'static str>,
}

#[derive(Serialize)]
pub(crate) struct ProjectedSummary {
    pub(crate) rank: usize,
    /// The name of the matrix's type.
    projection: &'static str,
}

#[derive(Serialize)]
pub(crate) struct QuotientRemainderSummary {
    operation: &'static str,
    num_remainders: u32,
    columns: [usize; 2],
}

#[derive(Serialize)]
pub(crate) struct TtSummary {
    pub(crate) row_factors: Vec<u32>,
    pub(crate) column_factors: Vec<u32>,
    pub(crate) ranks: Vec<u32>,
    pub(crate) digit_order: &'static str,
    pub(crate) column_order: &'static str,
    pub(crate) num_parameters: u64,
    pub(crate) flops_per_row: u64,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let file = BlobFile::open(&args.blob)?;
    let summary = summarise(&file.blob()?);
    output::print(|mut out| {
        if args.json {
            serde_json::to_writer_pretty(&mut out, &summary)?;
            writeln!(out)
        } else {
            print(out, file.path().display(), &summary)
        }
    })?;
    Ok(Outcome::Done)
}

fn dtype_name<S: Serializer>(dtype: &Dtype, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(dtype.name())
}

pub(crate) fn summarise(blob: &Blob<'_>) -> BlobSummary {
    let tables: Vec<TableSummary> = blob
        .tables()
        .map(|table| {
            let data = table.data();
            let tt = match data.weights() {
                Weights::Tt(tt) => Some(TtSummary {
                    row_factors: tt.shape().row_factors().to_vec(),
                    column_factors: tt.shape().column_factors().to_vec(),
                    ranks: tt.shape().inner_ranks().to_vec(),
                    digit_order: tt.shape().digit_order().name(),
                    column_order: tt.shape().column_order().name(),
                    num_parameters: tt.shape().num_parameters(),
                    flops_per_row: tt.shape().flops_left_to_right(),
                }),
                _ => None,
            };
            TableSummary {
                name: table.name().to_owned(),
                representation: StoredAs::of(data.weights()),
                dtype: data.dtype(),
                num_embeddings: table.num_embeddings(),
                embedding_dim: table.embedding_dim(),
                bytes: table.sections().map(|section| section.len).sum(),
                dense_f32_bytes: table
                    .num_embeddings()
                    .saturating_mul(table.embedding_dim() as u64 * 4),
                overrides: data.overrides().map_or(0, |overrides| overrides.ids().len()),
                prefix_products: match data.weights() {
                    Weights::Tt(tt) => tt.prefixes().map_or(0, |prefixes| prefixes.ids().len()),
                    _ => 0,
                },
                workspace_len: table.workspace_len(1),
                index_map: data.index_map().name(),
                num_rows: data.num_rows(),
                tt,
                projected: match data.weights() {
                    Weights::Projected(table) => Some(ProjectedSummary {
                        rank: table.rank(),
                        projection: table.projection().dtype().name(),
                    }),
                    _ => None,
                },
                quotient_remainder: match data.weights() {
                    Weights::QuotientRemainder(table) => Some(QuotientRemainderSummary {
                        operation: table.combine().name(),
                        num_remainders: table.num_remainders(),
                        columns: [
                            table.quotients().embedding_dim(),
                            table.remainders().embedding_dim(),
                        ],
                    }),
                    _ => None,
                },
                codebook: match data.weights() {
                    Weights::Codebook(table) => Some(CodebookSummary {
                        num_books: table.num_books(),
                        book_len: table.book_len(),
                        inner_dim: table.inner_dim(),
                        combine: table.combine().name(),
                        codes: table.code_dtype().name(),
                        projection: table.projection().map(|matrix| matrix.dtype().name()),
                    }),
                    _ => None,
                },
            }
        })
        .collect();
    BlobSummary {
        format_version: ttrec::limits::VERSION,
        bytes: blob.as_bytes().len() as u64,
        dense_f32_bytes: tables
            .iter()
            .fold(0, |sum, table| sum.saturating_add(table.dense_f32_bytes)),
        model: blob.ranker().ok().map(|ranker| ModelSummary {
            num_dense: ranker.num_dense(),
            embedding_dim: ranker.embedding_dim(),
            interaction: ranker.interaction().name(),
            tables: ranker.tables().map(|table| table.name().to_owned()).collect(),
            poolings: ranker.poolings().map(pooling_name).collect(),
            layers: blob
                .layers()
                .enumerate()
                .map(|(position, layer)| summarise_layer(blob, position, &layer))
                .collect(),
            workspace_len: ranker.workspace_len(1),
        }),
        tables,
    }
}

fn pooling_name(pooling: Pooling) -> &'static str {
    match pooling {
        Pooling::Sum => "sum",
        Pooling::Mean => "mean",
        _ => "max",
    }
}

fn summarise_layer(blob: &Blob<'_>, position: usize, layer: &Layer<'_>) -> LayerSummary {
    LayerSummary {
        stack: layer.stack.name(),
        inputs: layer.inputs,
        outputs: layer.outputs,
        activation: layer.activation.name(),
        dtype: layer.weights.dtype().name(),
        bytes: blob.layer_sections(position).map(|section| section.len).sum(),
    }
}

fn print(
    out: &mut dyn Write,
    path: std::path::Display<'_>,
    summary: &BlobSummary,
) -> io::Result<()> {
    let count = summary.tables.len();
    writeln!(
        out,
        "{path}: format {}, {count} table{}, {} bytes, {:.1}x smaller than dense f32\n",
        summary.format_version,
        if count == 1 { "" } else { "s" },
        summary.bytes,
        summary.dense_f32_bytes as f64 / summary.bytes as f64
    )?;
    let width = summary
        .tables
        .iter()
        .map(|table| table.name.escape_debug().count())
        .max()
        .unwrap_or(0)
        .max(5);
    writeln!(
        out,
        "{:width$}  {:>13} x {:<5} {:5} {:4} {:>13} {:>8}  shape",
        "table", "rows", "cols", "kind", "type", "bytes", "smaller"
    )?;
    for table in &summary.tables {
        let (kind, shape) =
            match (&table.tt, &table.projected, &table.quotient_remainder, &table.codebook) {
                (Some(tt), ..) => {
                    let reversed = tt.column_order != DigitOrder::MostSignificantFirst.name();
                    let shape = format!(
                        "p {:?} q {:?} ranks {:?}",
                        tt.row_factors, tt.column_factors, tt.ranks
                    );
                    ("tt", if reversed { shape + ", cores reversed" } else { shape })
                }
                (_, Some(projected), ..) => (
                    "proj",
                    format!("rank {}, projection {}", projected.rank, projected.projection),
                ),
                (_, _, Some(parts), _) => {
                    ("qr", format!("{} of {} remainders", parts.operation, parts.num_remainders))
                }
                (.., Some(codebook)) => {
                    let CodebookSummary { num_books, book_len, combine, codes, .. } = codebook;
                    let shape =
                        format!("{combine} of {num_books} x {book_len} entries, {codes} codes");
                    let projection =
                        codebook.projection.map(|dtype| format!(", projection {dtype}"));
                    ("codes", shape + &projection.unwrap_or_default())
                }
                _ => ("dense", String::new()),
            };
        let map = if table.index_map == IndexMap::Identity.name() {
            String::new()
        } else {
            format!(", {} of {} rows", table.index_map, table.num_rows)
        };
        let shape = shape + &map;
        let shape = shape.trim_start_matches(", ");
        let overrides = if table.overrides > 0 {
            format!(", {} overridden rows", table.overrides)
        } else {
            String::new()
        };
        let products = match table.prefix_products {
            0 => String::new(),
            count => format!(", {count} prefix products"),
        };
        writeln!(
            out,
            "{:width$}  {:>13} x {:<5} {:5} {:4} {:>13} {:>7.1}x  {shape}{overrides}{products}",
            // Escaped, so that names cannot inject terminal control sequences.
            table.name.escape_debug().to_string(),
            table.num_embeddings,
            table.embedding_dim,
            kind,
            table.dtype.name(),
            table.bytes,
            table.dense_f32_bytes as f64 / table.bytes as f64,
        )?;
    }
    if let Some(model) = &summary.model {
        print_model(out, model)?;
    }
    Ok(())
}

fn print_model(out: &mut dyn Write, model: &ModelSummary) -> io::Result<()> {
    writeln!(
        out,
        "\nmodel: {} dense features, {} interaction of {} tables x {}",
        model.num_dense,
        model.interaction,
        model.tables.len(),
        model.embedding_dim
    )?;
    for LayerSummary { stack, inputs, outputs, activation, dtype, bytes } in &model.layers {
        writeln!(out, "{stack:6} {inputs:>7} x {outputs:<7} {activation:7} {dtype:4} {bytes:>13}")?;
    }
    let tables: Vec<String> =
        model.tables.iter().map(|name| name.escape_debug().to_string()).collect();
    writeln!(out, "tables in order: {}", tables.join(" "))?;
    match &model.poolings[..] {
        [first, rest @ ..] if rest.iter().all(|other| other == first) => {
            writeln!(out, "pooling: {first}")
        }
        poolings => writeln!(out, "pooling in order: {}", poolings.join(" ")),
    }
}
