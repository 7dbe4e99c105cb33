//! Sentences about the numbers of a table.

use super::{
    TableReport,
    numbers::{bytes, percent, times},
};
use ttrec::dtype::Dtype;
use ttrec_convert::{StoredAs, plan::Kind};

pub(super) fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Dense => "dense",
        Kind::LowRank => "low rank",
        Kind::Codes => "codes",
        Kind::TensorTrain => "tensor train",
        _ => "best of all",
    }
}

/// The CSS class of a kind's points and lines.
pub(super) fn class(kind: Kind) -> &'static str {
    match kind {
        Kind::Dense => "dense",
        Kind::LowRank => "low",
        Kind::Codes => "codes",
        Kind::TensorTrain => "tt",
        _ => "best",
    }
}

pub(super) fn representation(table: &TableReport) -> String {
    let summary = &table.summary;
    match (&summary.tt, &summary.projected) {
        (Some(tt), _) => {
            format!("tensor train, {} cores in {}", tt.row_factors.len(), summary.dtype.name())
        }
        (_, Some(projected)) => {
            format!("{} rows of rank {}, and a projection", summary.dtype.name(), projected.rank)
        }
        _ => {
            format!("{} {}", summary.representation.name().replace('_', " "), summary.dtype.name())
        }
    }
}

/// The error and its cause, a comparison with alternatives, and the spectrum.
pub(super) fn verdict(table: &TableReport) -> String {
    [Some(lost(table)), Some(instead(table)), weighted(table), spectrum(table)]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(" ")
}

fn lost(table: &TableReport) -> String {
    let error = table.comparison.relative_error;
    let (summary, ratio) =
        (&table.summary, times(table.before as f64 / table.summary.bytes as f64));
    if error == 0.0 {
        return format!("Lossless at {ratio}: every row has the checkpoint's values.");
    }
    if error < 1e-6 {
        return format!("Lossless at {ratio}, except for the rounding of f32 arithmetic.");
    }
    let have = if summary.projected.is_some() { "have" } else { "has" };
    let kept =
        format!("{} {have} {} error at {ratio}.", representation_start(table), percent(error));
    match summary.representation {
        made if made == table.trained_as => {}
        StoredAs::Tt => {
            return format!(
                "{kept} It was not trained as a tensor train: these ranks cannot hold all of it."
            );
        }
        StoredAs::Projected => {
            return format!("{kept} The error is what its rank leaves out.");
        }
        StoredAs::Codebook => {
            return format!("{kept} The error is what its codes leave out.");
        }
        _ => return kept,
    }
    let parts = if summary.tt.is_some() { "slice" } else { "row" };
    match summary.dtype {
        Dtype::F16 => format!("{kept} The error comes from rounding to 11 significant bits."),
        Dtype::Bf16 => format!("{kept} The error comes from rounding to 8 significant bits."),
        Dtype::I8 => {
            format!("{kept} The error comes from rounding to 256 steps for each {parts}.")
        }
        Dtype::I4 => {
            format!("{kept} The error comes from rounding to 16 steps for each {parts}.")
        }
        _ => kept,
    }
}

fn representation_start(table: &TableReport) -> String {
    match (&table.summary.tt, &table.summary.projected) {
        (Some(_), _) => format!("A tensor train in {}", table.summary.dtype.name()),
        (_, Some(projected)) => {
            format!("{} rows of rank {}", table.summary.dtype.name(), projected.rank)
        }
        _ => match table.summary.representation {
            StoredAs::Dense => table.summary.dtype.name().to_owned(),
            other => capital(&format!(
                "{} {}",
                other.name().replace('_', " "),
                table.summary.dtype.name()
            )),
        },
    }
}

/// The best alternative of at most the same size, or the smallest one of the same error.
fn instead(table: &TableReport) -> String {
    let (own_bytes, own_error) = (table.summary.bytes, table.comparison.relative_error);
    let all = || table.families.iter().flat_map(|family| &family.candidates);
    // A difference of less than 5 % is not worth a sentence.
    let better = all()
        .filter(|c| c.bytes <= own_bytes && c.error < own_error * 0.95 && own_error >= 1e-6)
        .min_by(|a, b| a.error.total_cmp(&b.error));
    let smaller = all()
        .filter(|c| {
            (c.bytes as f64) < own_bytes as f64 * 0.95 && c.error <= own_error.max(1e-6) * 1.05
        })
        .min_by_key(|c| c.bytes);
    match (better, smaller) {
        (Some(c), _) => format!(
            "{} would have less error, {}, in {}.",
            capital(&c.name),
            percent(c.error),
            bytes(c.bytes)
        ),
        (None, Some(c)) => {
            format!("{} would have the same error in {}.", capital(&c.name), bytes(c.bytes))
        }
        (None, None) => "No alternative has less error at this size.".to_owned(),
    }
}

fn weighted(table: &TableReport) -> Option<String> {
    let (weighted, plain) =
        (table.comparison.weighted_relative_error?, table.comparison.relative_error);
    let how = match weighted / plain {
        _ if plain == 0.0 => return None,
        ratio if ratio > 1.1 => "frequent rows lose more than others",
        ratio if ratio < 0.9 => "frequent rows lose less than others",
        _ => "frequent rows lose as much as others",
    };
    Some(format!("Weighted by frequency, the error is {}: {how}.", percent(weighted)))
}

fn spectrum(table: &TableReport) -> Option<String> {
    let all = table.kept.len();
    let most = table.kept.iter().position(|&share| share >= 0.9)? + 1;
    if all < 2 {
        return None;
    }
    let why = match most as f64 / all as f64 {
        share if share > 0.5 => ", so a low rank loses much",
        share if share < 0.2 => ", so a low rank loses little",
        _ => "",
    };
    Some(format!("Rank {most} of {all} keeps 90\u{a0}% of its squared norm{why}."))
}

/// Capitalises the start of a sentence, unless it is the name of a type, such as f16.
fn capital(text: &str) -> String {
    if text.chars().nth(1).is_some_and(|second| second.is_ascii_digit()) {
        return text.to_owned();
    }
    let mut characters = text.chars();
    characters
        .next()
        .map(|first| first.to_uppercase().chain(characters).collect())
        .unwrap_or_default()
}
