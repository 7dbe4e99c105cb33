//! Scores that the training program computed, to prove that a blob's model is the same: its layers,
//! the order and the pooling of its tables, and its activations.

use crate::{outcome::Outcome, output};
use anyhow::{Result, bail, ensure};
use std::path::Path;
use ttrec::{Pooling, Ranker, dtype::Dtype};
use ttrec_convert::{Checkpoint, zeros};

/// The largest difference of scores that rounding explains.
pub(crate) const MAX_ERROR: f64 = 1e-4;

/// Compares the scores of the samples in `samples`, or their logits, with the array in the file at
/// `path`, and prints the greatest difference.
pub(crate) fn compare(
    ranker: &Ranker<'_>,
    (found, samples): (&[f32], &str),
    logits: bool,
    path: &Path,
    max_error: f64,
) -> Result<Outcome> {
    let expected = read(path)?;
    ensure!(
        found.len() == expected.len(),
        "{}: {} values, but {samples} has {} samples: expected one value for each",
        path.display(),
        expected.len(),
        found.len()
    );
    let (sample, difference) = greatest_difference(found, &expected);
    let agrees = difference <= max_error;
    let hints = if agrees {
        Vec::new()
    } else {
        hints(ranker, found, logits, &expected, max_error)
    };
    output::print(|out| {
        writeln!(
            out,
            "{}: the greatest difference is {difference:.3e}, at sample {sample}: {} for {}: {} \
             {max_error:e}",
            path.display(),
            found[sample],
            expected[sample],
            if agrees { "within" } else { "above" }
        )?;
        hints.iter().try_for_each(|hint| writeln!(out, "  {hint}"))
    })?;
    Ok(if agrees { Outcome::Done } else { Outcome::Differs })
}

/// The only array of a file, with one value for each sample.
fn read(path: &Path) -> Result<Vec<f32>> {
    let file = Checkpoint::open(path)?;
    let arrays: Vec<_> = file.tensors().collect();
    let [array] = arrays[..] else {
        bail!("{}: {} arrays: expected one, of scores", path.display(), arrays.len());
    };
    ensure!(
        matches!(array.shape(), [_] | [_, 1]),
        "{}: {:?} has shape {:?}: expected one value for each sample",
        path.display(),
        array.name(),
        array.shape()
    );
    let mut values = zeros(usize::try_from(array.len())?)?;
    array.read_f32(0, &mut values)?;
    if let Some(at) = values.iter().position(|value| !value.is_finite()) {
        bail!("{}: value {at} is {}: expected a finite number", path.display(), values[at]);
    }
    Ok(values)
}

/// The sample with the greatest difference, and the difference. One that is not a number is the
/// greatest.
fn greatest_difference(found: &[f32], expected: &[f32]) -> (usize, f64) {
    let difference = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).abs();
    let differences = found.iter().zip(expected).map(difference).enumerate();
    // `total_cmp` puts NaN above all numbers.
    differences.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((0, 0.0))
}

/// What may explain the difference.
fn hints(
    ranker: &Ranker<'_>,
    found: &[f32],
    logits: bool,
    expected: &[f32],
    max_error: f64,
) -> Vec<String> {
    let after_sigmoid = |logits: &[f32]| -> Vec<f32> {
        logits.iter().map(|&x| (1.0 / (1.0 + f64::from(-x).exp())) as f32).collect()
    };
    let (hint, other) = if logits {
        let hint = "They are equal to the scores after the sigmoid: leave --logits out.";
        (hint, greatest_difference(&after_sigmoid(found), expected))
    } else {
        let hint = "They are equal to the logits, the scores before the sigmoid: pass --logits.";
        (hint, greatest_difference(found, &after_sigmoid(expected)))
    };
    if other.1 <= max_error {
        return vec![hint.to_owned()];
    }
    let mut hints = vec!["Is this the model that computed the expected scores?".to_owned()];
    for (table, (of, pooling)) in ranker.tables().zip(ranker.poolings()).enumerate() {
        let pooled = if pooling == Pooling::Mean { "averaged" } else { "summed" };
        hints.push(format!(
            "The bags indices_{table} are of table {:?}, and are {pooled}.",
            of.name()
        ));
    }
    hints.push(
        "A `padding_idx` of the program's tables has to be given: --padding-idx TABLE=INDEX."
            .to_owned(),
    );
    hints.push(format!(
        "The interaction is {:?}. `tables`, `pooling` and `interaction` in [model] of the spec say \
         otherwise.",
        ranker.interaction().name()
    ));
    let of_tables = ranker.tables().map(|table| table.data().dtype());
    let mut dtypes = of_tables.chain(ranker.layers().map(|layer| layer.weights.dtype()));
    if let Some(dtype) = dtypes.find(|dtype| *dtype != Dtype::F32) {
        hints.push(format!(
            "Parts are stored as {}: convert everything as f32 to tell rounding from other \
             differences, or raise --max-error.",
            dtype.name()
        ));
    }
    hints
}
