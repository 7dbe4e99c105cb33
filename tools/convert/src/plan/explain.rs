//! Sentences about each table of a plan: the choice, its cost, and the reason.

use super::{
    candidate::{Candidate, Candidates, Form},
    layers::{Layers, StoredLayers},
};
use crate::{factorize::CodesShape, spec::Combining};

/// How many times as fast plain rows are worth naming.
const FASTER: f64 = 4.0;

/// The description of a candidate, such as "i4 rows of rank 343".
pub(crate) fn describe(candidate: &Candidate) -> String {
    let dtype = candidate.dtype.name();
    match &candidate.representation {
        Form::Dense => format!("{dtype} rows"),
        Form::LowRank { rank } => format!("{dtype} rows of rank {rank}"),
        Form::Tt { shape, .. } => {
            format!("a tensor train of ranks {:?} in {dtype}", shape.inner_ranks())
        }
        Form::Codes { shape: CodesShape { combine, books, bits, rank, projected } } => {
            let added = match combine {
                Combining::Concat => "",
                Combining::Add => "added ",
            };
            let of_rank = if *projected {
                format!(" of rank {rank}")
            } else {
                String::new()
            };
            format!("{books} {added}codes of {bits} bits{of_rank} with {dtype} books")
        }
        Form::AsTrained { what } => format!("its {what} in {dtype}"),
    }
}

/// A short description for plots, such as "i4 rank 343".
pub(crate) fn shortly(candidate: &Candidate) -> String {
    let dtype = candidate.dtype.name();
    match &candidate.representation {
        Form::Dense => dtype.to_owned(),
        Form::LowRank { rank } => format!("{dtype} rank {rank}"),
        Form::Tt { shape, .. } => {
            format!("{dtype} R {}", shape.inner_ranks().iter().max().unwrap_or(&1))
        }
        Form::Codes { shape } => {
            let sign = match shape.combine {
                Combining::Concat => "x",
                Combining::Add => "+",
            };
            format!("{dtype} {} {sign} {} bits", shape.books, shape.bits)
        }
        Form::AsTrained { what } => format!("{what} {dtype}"),
    }
}

/// One line about a table and its choice.
pub(super) fn outcome(table: &Candidates, chosen: &Candidate) -> String {
    let Candidates { name, num_embeddings, embedding_dim, .. } = table;
    format!(
        "{}: {num_embeddings} x {embedding_dim}, {} as f32 -> {}, {} ({}), {}, about {} ns a \
         lookup",
        name.escape_debug(),
        size(table.f32_bytes()),
        describe(chosen),
        size(chosen.bytes as f64),
        times(table, chosen),
        error(chosen.error),
        chosen.nanoseconds.round()
    )
}

/// One line about the layers.
pub(super) fn layers(layers: &Layers, stored: &StoredLayers) -> String {
    let Layers { count, f32_bytes, .. } = *layers;
    format!(
        "{count} layers: {} as f32 -> {}, {}, {}",
        size(f32_bytes as f64),
        stored.dtype.name(),
        size(stored.bytes as f64),
        error(stored.error)
    )
}

/// The reason for the choice, in sentences.
pub(super) fn reason(table: &Candidates, chosen: &Candidate) -> String {
    let mut sentences = match chosen.representation {
        Form::AsTrained { what } => {
            vec![format!("Trained as {what}: only the type of its numbers changes.")]
        }
        _ => alternatives(table, chosen),
    };
    if !table.complete {
        sentences.push(format!("Errors are estimated from {} rows.", table.rows_measured));
    }
    sentences.join(" ")
}

/// Compares the choice with other representations.
fn alternatives(table: &Candidates, chosen: &Candidate) -> Vec<String> {
    let mut sentences = Vec::new();
    if chosen.error == 0.0 && matches!(chosen.representation, Form::Dense) {
        sentences.push("Fits the budget unchanged.".to_owned());
    }
    let is_train = |candidate: &Candidate| matches!(candidate.representation, Form::Tt { .. });
    let family = |candidate: &Candidate| {
        let combine = match &candidate.representation {
            Form::Codes { shape } => Some(shape.combine),
            _ => None,
        };
        (std::mem::discriminant(&candidate.representation), combine, candidate.dtype)
    };
    // The best of each other family of at most the same size.
    let mut rivals: Vec<&Candidate> = Vec::new();
    for rival in table
        .list
        .iter()
        .filter(|rival| rival.bytes <= chosen.bytes && family(rival) != family(chosen))
    {
        match rivals.iter_mut().find(|known| family(known) == family(rival)) {
            Some(known) if rival.error < known.error => *known = rival,
            Some(_) => {}
            None => rivals.push(rival),
        }
    }
    rivals.sort_by(|a, b| a.error.total_cmp(&b.error));
    let mut clauses: Vec<String> = Vec::new();
    if chosen.error > 0.0 {
        clauses.extend(
            rivals
                .iter()
                .filter(|rival| !is_train(rival))
                .take(2)
                .map(|rival| format!("{}, {}", describe(rival), error(rival.error))),
        );
    }
    let best_train = rivals
        .iter()
        .find(|rival| is_train(rival))
        .map(|rival| format!("a tensor train, {}", error(rival.error)));
    let least = table
        .trains
        .iter()
        .filter(|(bytes, _)| *bytes <= chosen.bytes)
        .map(|(_, error)| *error);
    let least = least.min_by(f64::total_cmp).filter(|&least| least > chosen.error);
    let at_least = least.map(|least| format!("a tensor train, at least {}", error(least)));
    if !is_train(chosen) && chosen.error > 0.0 {
        clauses.extend(best_train.or(at_least));
    }
    if let Some(first) = clauses.first_mut() {
        *first = format!("At this size: {first}");
        sentences.push(format!("{}.", clauses.join("; ")));
    }
    if is_train(chosen) {
        sentences.push(
            "No quantised rows, low-rank rows or codes match the tensor train at this size."
                .to_owned(),
        );
    }
    let plain = |candidate: &&Candidate| matches!(candidate.representation, Form::Dense);
    // A much faster alternative.
    let fast = table.list.iter().filter(plain).filter(|rows| rows.bytes <= chosen.bytes);
    let fast = fast.filter(|rows| rows.nanoseconds * FASTER <= chosen.nanoseconds);
    if let Some(fast) = fast.min_by(|a, b| a.error.total_cmp(&b.error)) {
        let (what, error, time) = (describe(fast), error(fast.error), fast.nanoseconds.round());
        let factor = (chosen.nanoseconds / fast.nanoseconds).round();
        sentences.push(format!(
            "{what} would be {factor}x faster: about {time} ns, {error} (--max-nanoseconds)."
        ));
    }
    // The smallest dense rows with less error, for a larger budget.
    if let Some(next) = table
        .list
        .iter()
        .filter(plain)
        .find(|next| next.bytes > chosen.bytes && next.error < chosen.error)
    {
        sentences.push(format!(
            "{} would take {} ({}), {}.",
            describe(next),
            size(next.bytes as f64),
            times(table, next),
            error(next.error)
        ));
    }
    sentences
}

/// "error 12 %".
pub(super) fn error(relative: f64) -> String {
    if relative == 0.0 {
        "no error".to_owned()
    } else {
        format!("error {} %", significant(relative * 100.0))
    }
}

/// "5.63 MB".
pub fn size(bytes: f64) -> String {
    match bytes {
        _ if bytes >= 1e9 => format!("{} GB", significant3(bytes / 1e9)),
        _ if bytes >= 1e6 => format!("{} MB", significant3(bytes / 1e6)),
        _ if bytes >= 1e3 => format!("{} kB", significant3(bytes / 1e3)),
        _ => format!("{bytes} bytes"),
    }
}

fn times(table: &Candidates, candidate: &Candidate) -> String {
    format!("{}x", significant(table.f32_bytes() / candidate.bytes.max(1) as f64))
}

/// Two significant digits, without an exponent.
fn significant(x: f64) -> String {
    digits(x, 2)
}

fn significant3(x: f64) -> String {
    digits(x, 3)
}

fn digits(x: f64, significant: i32) -> String {
    if !x.is_finite() || x == 0.0 {
        return format!("{x}");
    }
    // Rounded first: 9.96 has the digits of 10.
    let rounded: f64 = format!("{x:.*e}", (significant - 1) as usize).parse().unwrap_or(x);
    let decimals = significant - 1 - rounded.abs().log10().floor() as i32;
    format!("{x:.*}", decimals.max(0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        assert_eq!(error(0.0), "no error");
        for (relative, words) in [
            (0.1149, "11"),
            (0.0996, "10"),
            (0.00123, "0.12"),
            (1.0, "100"),
            (0.0949, "9.5"),
            (2e-6, "0.00020"),
        ] {
            assert_eq!(error(relative), format!("error {words} %"));
        }
        for (bytes, words) in [
            (46_881_792.0, "46.9 MB"),
            (768.0, "768 bytes"),
            (5_982_312.0, "5.98 MB"),
            (2.816e9, "2.82 GB"),
            (99_990.0, "100 kB"),
        ] {
            assert_eq!(size(bytes), words);
        }
    }
}
