//! The HTML page. maud escapes every text and attribute, and the page's policy forbids scripts and
//! requests. `data` elements hold the unrounded numbers for programs.

use super::{
    Judged, TableReport, explain, layer_bytes,
    numbers::{bytes, count, percent, times},
    plot::{self, PlotPoint, Series, Size},
};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use std::path::Path;
use ttrec_convert::{
    StoredAs,
    compare::{self, LayerComparison},
    plan::{Alternative, Family},
};

const STYLE: &str = include_str!("style.css");
/// How many tables the plot of sizes shows.
const PLOTTED: usize = 40;
/// How many bars a histogram has.
const BARS: usize = 32;

pub(super) fn page(
    blob: &Path,
    checkpoint: &Path,
    blob_bytes: u64,
    tables: &[TableReport],
    layers: &[LayerComparison],
    judged: Option<&Judged>,
) -> String {
    let name =
        |path: &Path| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let before = tables.iter().map(|table| table.before).sum::<u64>() + layer_bytes(layers)[0];
    let what = if layers.is_empty() {
        "tables"
    } else {
        "tables and layers"
    };
    let ratio = before as f64 / blob_bytes as f64;
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta http-equiv="Content-Security-Policy"
                    content="default-src 'none'; style-src 'unsafe-inline'";
                title { (name(blob)) " - conversion report" }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    p.eyebrow { "Conversion report" }
                    h1 { (name(blob)) }
                    p.lede {
                        (bytes(before)) " of " (what) " in " span.name { (name(checkpoint)) }
                            " became a blob of "
                        strong { (bytes(blob_bytes)) } ", " strong { (times(ratio)) } " smaller."
                    }
                    dl.facts {
                        (fact("Blob", &data("blob-bytes", blob_bytes as f64, &bytes(blob_bytes))))
                        (fact("Checkpoint",
                            &data("checkpoint-bytes", before as f64, &bytes(before))))
                        (fact("Smaller", &data("ratio", ratio, &times(ratio))))
                        (fact("Tables", &html! { (tables.len()) }))
                        @if !layers.is_empty() { (fact("Layers", &html! { (layers.len()) })) }
                    }
                }
                main {
                    (overview(tables, layers))
                    @if let Some(judged) = judged { (judgement(blob_bytes, judged)) }
                    @for (i, table) in tables.iter().enumerate() { (section(i, table)) }
                    @if !layers.is_empty() { (layer_section(layers)) }
                }
                footer { (footnotes()) }
            }
        }
    }
    .into_string()
}

/// A number, rounded in the text and unrounded in the `value` attribute.
fn data(id: &str, value: f64, text: &str) -> Markup {
    html! { data id=(id) value=(value) { (text) } }
}

/// A name with line breaks allowed after its separators.
fn breakable(name: &str) -> Markup {
    html! { @for part in name.split_inclusive(['.', '_', '/', '-']) { (part) wbr; } }
}

fn fact(term: &str, description: &Markup) -> Markup {
    html! { div { dt { (term) } dd { (description) } } }
}

/// An entry of a plot's legend.
fn key(class: &str, meaning: &str) -> Markup {
    html! { span.key { span class=(class) {} (meaning) } " " }
}

fn overview(tables: &[TableReport], layers: &[LayerComparison]) -> Markup {
    let [layers_before, layers_after] = layer_bytes(layers);
    struct Row<'a> {
        size: Size<'a>,
        error: f64,
        link: String,
    }
    let mut rows: Vec<Row<'_>> = tables
        .iter()
        .enumerate()
        .map(|(i, table)| Row {
            size: Size {
                name: &table.summary.name,
                before: table.before,
                after: table.summary.bytes,
            },
            error: table.comparison.relative_error,
            link: format!("#table-{i}"),
        })
        .collect();
    if !layers.is_empty() {
        rows.push(Row {
            size: Size { name: "layers", before: layers_before, after: layers_after },
            error: compare::relative_error(layers),
            link: "#layers".to_owned(),
        });
    }
    // The order of both the picture and the table.
    rows.sort_by_key(|row| std::cmp::Reverse(row.size.before.max(row.size.after)));
    let plotted: Vec<&Size<'_>> = rows.iter().map(|row| &row.size).take(PLOTTED).collect();
    let left_out = rows.len() - plotted.len();
    html! {
        section.card {
            h2 { "Size" }
            div.columns {
                figure {
                    (plot::sizes(&plotted, "Bytes of each table in the checkpoint and in the blob"))
                    figcaption {
                        (key("before", "checkpoint")) (key("after", "blob"))
                        @if left_out > 0
                            { "The " (PLOTTED) " largest; " (left_out) " more are in the table" }
                    }
                }
                div.scroll tabindex="0" role="region" aria-label="Tables" {
                    table {
                        thead { tr {
                            th scope="col" { "Table" } th.number scope="col" { "Before" } th.number
                                scope="col" { "After" }
                            th.number scope="col" { "Smaller" } th.number scope="col" { "Error" }
                        } }
                        tbody {
                            @for Row { size, error, link } in &rows { tr {
                                th scope="row" { a.name href=(link) { (breakable(size.name)) } }
                                td.number { (bytes(size.before)) }
                                td.number { (bytes(size.after)) }
                                td.number { (times(size.before as f64 / size.after as f64)) }
                                td.number { (percent(*error)) }
                            } }
                        }
                    }
                }
            }
        }
    }
}

/// What the whole model loses.
fn judgement(blob_bytes: u64, judged: &Judged) -> Markup {
    let choices: Vec<(u64, f64)> =
        judged.choices.iter().map(|choice| (choice.bytes, choice.increase)).collect();
    let most = judged.max_increase.unwrap_or(judged.increase);
    let (metric, loss) = (&judged.metric, format!("{:.5}", judged.increase));
    html! {
        section.card #judged {
            h2 { "The whole model" }
            p.verdict {
                "Its " (metric) " is worse than with everything as f32 by "
                    (data("judged-increase", judged.increase, &loss)) ", at most " (most)
                    " (dashed). Of the " (choices.len())
                    " choices that ttrec plan measured, this is the smallest within the limit."
            }
            figure {
                (plot::judged(&choices, most, (blob_bytes, judged.increase),
                    "Loss of the whole model against bytes"))
                figcaption {
                    (key("own", "this blob")) (key("dense", "within the limit"))
                    (key("tt", "above it"))
                }
            }
        }
    }
}

fn section(i: usize, table: &TableReport) -> Markup {
    let (summary, comparison) = (&table.summary, &table.comparison);
    let id = |name: &str| format!("table-{i}-{name}");
    let error = |name: &str, value: f64| data(&id(name), value, &percent(value));
    let ratio = table.before as f64 / summary.bytes as f64;
    let quantiles = &comparison.row_error_quantiles;
    html! {
        section.card id={ "table-" (i) } {
            h2.name { (summary.name) }
            p.kind {
                (count(summary.num_embeddings)) " x " (count(summary.embedding_dim as u64)) ", "
                    (explain::representation(table))
                @if let Some(tt) = &summary.tt {
                    br; "row factors " (list(&tt.row_factors)) ", column factors "
                        (list(&tt.column_factors)) ", ranks "
                    (list(&tt.ranks))
                }
                @if summary.overrides > 0 { br; (count(summary.overrides as u64)) " overridden \
                                                                                   rows" }
                @if summary.prefix_products > 0
                    { br; (count(summary.prefix_products as u64)) " prefix products stored" }
            }
            p.verdict { (explain::verdict(table)) }
            dl.facts {
                (fact("Checkpoint",
                    &data(&id("checkpoint-bytes"), table.before as f64, &bytes(table.before))))
                (fact("Blob", &data(&id("bytes"), summary.bytes as f64, &bytes(summary.bytes))))
                (fact("Smaller", &data(&id("ratio"), ratio, &times(ratio))))
                @if summary.tt.is_some() {
                    (fact("As dense f32", &html! { (bytes(summary.dense_f32_bytes)) }))
                }
                (fact("Relative error", &error("relative-error", comparison.relative_error)))
                @if let Some(weighted) = comparison.weighted_relative_error {
                    (fact("By frequency", &error("weighted-relative-error", weighted)))
                }
                (fact("Median row", &error("median", quantiles.median)))
                (fact("99 % of rows", &error("p99", quantiles.p99)))
                (fact("Worst row", &error("largest-row-error", comparison.largest_row_error)))
            }
            div.columns { (tradeoff(table)) (alternatives(i, table)) }
            div.columns {
                (row_errors(table)) (worst_rows(i, table))
                @if table.kept.len() > 1 { (low_rank(table)) }
            }
            @if let Some(rows) = table.sampled {
                p.note {
                    "Alternatives and ranks are measured on " (count(rows)) " of the "
                    (count(summary.num_embeddings))
                        " rows, evenly spaced; errors of the blob on all rows."
                    @if table.trained_as != StoredAs::Tt {
                        " Tensor trains were not tried: a sample of the rows cannot predict their \
                         error."
                    }
                }
            }
        }
    }
}

/// The layers of the model's MLPs.
fn layer_section(layers: &[LayerComparison]) -> Markup {
    let [before, after] = layer_bytes(layers);
    let (ratio, error) = (before as f64 / after as f64, compare::relative_error(layers));
    html! {
        section.card #layers {
            h2 { "Layers" }
            p.kind { "weights and biases of the model's MLPs" }
            dl.facts {
                (fact("Checkpoint",
                    &data("layers-checkpoint-bytes", before as f64, &bytes(before))))
                (fact("Blob", &data("layers-bytes", after as f64, &bytes(after))))
                (fact("Smaller", &data("layers-ratio", ratio, &times(ratio))))
                (fact("Relative error", &data("layers-relative-error", error, &percent(error))))
            }
            div.scroll tabindex="0" role="region" aria-label="Layers" {
                table {
                    thead { tr {
                        th scope="col" { "Weights" } th.number scope="col" { "Inputs x outputs" }
                            th scope="col" { "Type" }
                        th.number scope="col" { "Before" } th.number scope="col" { "After" }
                            th.number scope="col" { "Error" }
                    } }
                    tbody {
                        @for (i, layer) in layers.iter().enumerate() { tr {
                            th scope="row" { span.name { (breakable(&layer.name)) } }
                            td.number
                                { (count(layer.inputs as u64)) " x " (count(layer.outputs as u64)) }
                            td { (layer.dtype) }
                            td.number { (bytes(layer.checkpoint_bytes)) }
                            td.number
                                { (data(&format!("layer-{i}-bytes"), layer.bytes as f64,
                                &bytes(layer.bytes))) }
                            td.number {
                                (data(&format!("layer-{i}-error"), layer.relative_error,
                                    &percent(layer.relative_error)))
                            }
                        } }
                    }
                }
            }
        }
    }
}

fn list(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(", ")
}

fn tradeoff(table: &TableReport) -> Markup {
    let series = |family: &'_ Family| {
        let candidates = family.candidates.iter();
        let text = |c: &Alternative| {
            if c.listed {
                c.representation.clone()
            } else {
                String::new()
            }
        };
        let points =
            candidates.map(|c| PlotPoint { bytes: c.bytes, error: c.error, text: text(c) });
        Series { class: explain::class(family.kind), points: points.collect() }
    };
    let series: Vec<Series<'_>> = table.families.iter().map(series).collect();
    let own = PlotPoint {
        bytes: table.summary.bytes,
        error: table.comparison.relative_error,
        text: "this blob".to_owned(),
    };
    html! {
        figure {
            h3 { "Error against bytes" }
            (plot::tradeoff(&series, &own,
                "Relative error against bytes of this table and of alternatives"))
            figcaption {
                (key("own", "this blob"))
                @for family in &table.families
                    { (key(explain::class(family.kind), explain::kind(family.kind))) }
            }
        }
    }
}

fn alternatives(i: usize, table: &TableReport) -> Markup {
    struct Row {
        name: String,
        bytes: u64,
        error: f64,
        own: bool,
    }
    let mut rows: Vec<Row> = Vec::new();
    for family in &table.families {
        let row = |c: &Alternative| Row {
            name: c.name.clone(),
            bytes: c.bytes,
            error: c.error,
            own: false,
        };
        rows.extend(family.candidates.iter().filter(|c| c.listed).map(row));
    }
    rows.push(Row {
        name: "this blob".to_owned(),
        bytes: table.summary.bytes,
        error: table.comparison.relative_error,
        own: true,
    });
    rows.sort_by(|a, b| {
        b.bytes
            .cmp(&a.bytes)
            .then(b.own.cmp(&a.own))
            .then_with(|| a.name.cmp(&b.name))
            .then(a.error.total_cmp(&b.error))
    });
    html! {
        div {
            h3 { "Alternatives" }
            div.scroll tabindex="0" role="region" aria-label="Alternatives" {
                table id={ "table-" (i) "-alternatives" } {
                    thead { tr {
                        th scope="col" { "Stored as" } th.number scope="col" { "Bytes" }
                        th.number scope="col" { "Smaller" } th.number scope="col" { "Error" }
                    } }
                    tbody {
                        @for row in &rows { tr.own[row.own] {
                            th scope="row" { (row.name) }
                            td.number { data value=(row.bytes) { (bytes(row.bytes)) } }
                            td.number { (times(table.before as f64 / row.bytes as f64)) }
                            td.number { data value=(row.error) { (percent(row.error)) } }
                        } }
                    }
                }
            }
        }
    }
}

fn row_errors(table: &TableReport) -> Markup {
    let comparison = &table.comparison;
    let quantiles = &comparison.row_error_quantiles;
    let bars = comparison.bars(BARS);
    let exact = comparison.exact_rows();
    html! {
        figure {
            h3 { "Errors of the rows" }
            @if bars.is_empty() {
                p { "Every row is exact." }
            } @else {
                (plot::histogram(&bars, &[quantiles.median, quantiles.p99],
                    "Histogram of the rows' errors"))
                figcaption {
                    "Half of the rows have an error of at most " (percent(quantiles.median))
                    ", 99\u{a0}% of at most " (percent(quantiles.p99)) " (dashed)."
                    @if exact > 0 { " " (count(exact)) " exact rows are not shown." }
                }
            }
        }
    }
}

fn worst_rows(i: usize, table: &TableReport) -> Markup {
    let row_norm = table.comparison.row_norm;
    html! {
        div.tall {
            h3 { "Worst rows" }
            div.scroll tabindex="0" role="region" aria-label="Worst rows" {
                table id={ "table-" (i) "-worst" } {
                    thead { tr {
                        th.number scope="col" { "Row" } th.number scope="col" { "Error" }
                        th.number scope="col" { "Norm" } th.number scope="col" { "Error / norm" }
                    } }
                    tbody {
                        @for worst in
                            table.comparison.worst_rows.iter().filter(|worst| worst.error != 0.0)
                            { tr {
                            td.number { (count(worst.row)) }
                            td.number { data value=(worst.error) { (percent(worst.error)) } }
                            td.number { data value=(worst.norm) { (format!("{:.3}", worst.norm)) } }
                            td.number {
                                @if worst.norm > 0.0
                                    { (percent(worst.error * row_norm / worst.norm)) } @else { "-" }
                            }
                        } }
                    }
                }
            }
        }
    }
}

fn low_rank(table: &TableReport) -> Markup {
    let rank =
        |wanted: f64| table.kept.iter().position(|&share| share >= wanted).map_or(0, |at| at + 1);
    html! {
        figure {
            h3 { "What a low rank keeps" }
            (plot::kept(&table.kept, "Share of the table's squared norm that each rank keeps"))
            figcaption {
                "Rank " (rank(0.9)) " of " (table.kept.len()) " keeps 90\u{a0}% of the squared \
                 norm, rank " (rank(0.99)) " keeps 99\u{a0}%. Dashed: equal singular values."
            }
        }
    }
}

fn footnotes() -> Markup {
    html! {
        h2 { "How to read this" }
        p {
            "The " strong { "relative error" } " of a table is the Frobenius norm of its \
                                                difference from the checkpoint over that of the \
                                                table. The error of a "
            strong { "row" } " is the norm of its difference over the root mean square norm of the \
                              table's rows, so that the errors of large and small rows can be \
                              compared. "
            strong { "By frequency" } " weighs each row by its frequency."
        }
        p {
            "Alternatives are what ttrec plan considers: the table's rows in every type; short \
             rows of every rank with a projection in f16; tensor trains of several shapes and \
             ranks. Of each kind, those are drawn that no other one beats in both bytes and \
             error, and the table lists the best in a half, a quarter, and so on, of the bytes as \
             f32. A table that was trained as a tensor train has its own cores in other types. "
            strong { "Best of all" } " is what ttrec plan chooses from. Singular values are those \
                                       of the rows, not centred."
        }
        p { "ttrec " (env!("CARGO_PKG_VERSION")) }
    }
}
