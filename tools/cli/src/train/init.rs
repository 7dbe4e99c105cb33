//! Warm starts: the first values of a model from the tables and layers of another checkpoint.

use super::{
    TrainCheckpoint,
    tables::{Planned, TrainedForm},
};
use crate::progress::Terminal;
use anyhow::{Context, Result, bail, ensure};
use std::path::Path;
use ttrec::{
    Bags, Blob, Pooling, Table, blob,
    dtype::Dtype,
    train::{Dlrm, Embedding, Linear},
};
use ttrec_convert::{
    Checkpoint, Options, Spec, convert, detect, spec::TableSpec, trained::set_cores, zeros,
};

/// Sets the tables of `model` that the checkpoint has too, by name, and its layers, if the
/// checkpoint has any.
pub(super) fn take(
    path: &Path,
    spec: Option<&Path>,
    model: &mut Dlrm,
    tables: &[Planned],
) -> Result<()> {
    let checkpoint = Checkpoint::open(path)?;
    let mut spec = match spec {
        Some(spec) => Spec::open(spec)?,
        None => detect(&checkpoint, None)?,
    };
    if let Some(model) = &mut spec.model {
        model.dtype = Some(Dtype::F32);
    }
    let place = path.display();
    let progress = Terminal::default();
    let bytes = convert(&checkpoint, &spec, &Options::default(), &progress)?.to_blob()?;
    let blob = Blob::parse(&bytes)?;
    let trained = TrainCheckpoint::open(path).ok();
    let (mut taken, mut others) = (Vec::new(), Vec::new());
    for ((table, planned), number) in model.tables_mut().iter_mut().zip(tables).zip(0..) {
        let name = planned.name.as_str();
        let Ok(from) = blob.table(name) else {
            others.push(name);
            continue;
        };
        taken.push(name);
        let found = (from.num_embeddings(), from.embedding_dim());
        let expected = (u64::from(planned.num_embeddings), planned.embedding_dim);
        ensure!(
            found == expected,
            "{place}: table {name:?} is {} x {}, but the model's is {} x {}",
            found.0,
            found.1,
            expected.0,
            expected.1
        );
        if let Some(same) = trained.as_ref().and_then(|trained| same_table(trained, planned)) {
            let tensors = planned.tensors(same).into_iter().zip(table.parameters_mut());
            for ((name, _), parameters) in tensors {
                trained.iter().try_for_each(|file| {
                    file.read(&file.unrounded(&name), &mut parameters.values_mut())
                })?;
            }
            continue;
        }
        approximate(&from, planned, &mut **table)
            .with_context(|| format!("{place}: table {number}, {name:?}"))?;
    }
    ensure!(
        !taken.is_empty(),
        "{place}: has none of the tables {others:?}: name its tables as the model's in an \
         `init_spec`"
    );
    let num_layers = if model.layers().next().is_none() && is_product(&blob) {
        0
    } else {
        blob.num_layers()
    };
    if num_layers > 0 {
        set_layers(&blob, model).with_context(|| place.to_string())?;
    }
    let kept = if others.is_empty() {
        String::new()
    } else {
        format!("; the first values of {others:?} are drawn")
    };
    eprintln!("ttrec: {place}: took tables {taken:?} and {num_layers} layers{kept}");
    Ok(())
}

/// The number of the table of a checkpoint of `ttrec train` that is stored as `planned`, in any
/// type. `None` if there is none, or if it has a cache, because another run has no use for the
/// counters of a cache.
fn same_table(trained: &TrainCheckpoint, planned: &Planned) -> Option<usize> {
    let of_any_type = |spec: TableSpec| TableSpec { dtype: None, quantized: None, ..spec };
    let tables = trained.facts.tables.iter().cloned().map(of_any_type).enumerate();
    let mut same = tables.filter(|(number, spec)| *spec == of_any_type(planned.spec(*number)));
    let (number, _) = same.next()?;
    let mut tensors = planned.tensors(number).into_iter();
    let is_same = tensors.all(|(name, shape)| trained.has(&trained.unrounded(&name), &shape));
    (is_same && planned.cache_keys(number).is_none()).then_some(number)
}

/// All rows of a table.
fn rows_of(table: &Table<'_>) -> Result<Vec<f32>> {
    let count = u32::try_from(table.num_embeddings())?;
    let offsets: Vec<u32> = (0..=count).collect();
    let mut rows = zeros(table.embedding_dim().saturating_mul(count as usize))?;
    let bags = Bags::new(&offsets[..count as usize], &offsets)?;
    let mut workspace = zeros(table.workspace_len(count as usize))?;
    table.pool(&bags, Pooling::Sum, &mut rows, &mut workspace)?;
    Ok(rows)
}

/// Sets the parameters of `table` so that its rows are near those of another one: the same for a
/// dense table; the means of those that share a row for a hashed one.
fn approximate(from: &Table<'_>, planned: &Planned, table: &mut dyn Embedding) -> Result<()> {
    let mut rows = rows_of(from)?;
    if let Some(hashed) = planned.hashed {
        rows = means(&rows, planned.embedding_dim, hashed as usize);
    }
    match &planned.stored {
        TrainedForm::Dense => {
            let [parameters] = table.parameters_mut() else { bail!("a table has several parts") };
            parameters.values_mut().copy_from_slice(&rows);
        }
        TrainedForm::Tt { shape, .. } => {
            let parameters = table.parameters_mut().iter_mut().take(shape.num_cores());
            let mut values: Vec<_> = parameters.map(|core| core.values_mut()).collect();
            let mut cores: Vec<_> = values.iter_mut().map(|core| &mut **core).collect();
            set_cores(&rows, shape, &mut cores)?;
        }
        TrainedForm::QuotientRemainder { .. } | TrainedForm::Codes(_) => bail!(
            "quotients and remainders are not found from rows: `init` takes them only from a run \
             of `ttrec train` with the same ones"
        ),
    }
    Ok(())
}

/// The mean of the rows i that have the same i modulo `count`.
fn means(rows: &[f32], dim: usize, count: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; count * dim];
    for rows in rows.chunks(count * dim) {
        sums.iter_mut().zip(rows).for_each(|(sum, &x)| *sum += f64::from(x));
    }
    let total = rows.len() / dim;
    let of_row = |at: usize| (total - at).div_ceil(count).max(1) as f64;
    let means = sums.chunks(dim).enumerate();
    means
        .flat_map(|(at, sums)| sums.iter().map(move |sum| (sum / of_row(at)) as f32))
        .collect()
}

/// Whether the only layer is the one that changes nothing, which models without layers have in a
/// checkpoint.
fn is_product(blob: &Blob<'_>) -> bool {
    let mut layers = blob.layers();
    let changes_nothing = |layer: blob::Layer<'_>| {
        layer.weights.len() == 1 && layer.weights.get(0) == Some(1.0) && layer.bias == [0.0]
    };
    layers.next().is_some_and(changes_nothing) && layers.next().is_none()
}

/// Sets all layers.
fn set_layers(blob: &Blob<'_>, model: &mut Dlrm) -> Result<()> {
    let shape = |layer: &Linear| (layer.inputs(), layer.outputs());
    let wanted: Vec<_> = model.layers().map(|(_, layer)| shape(layer)).collect();
    let found: Vec<_> = blob.layers().map(|layer| (layer.inputs, layer.outputs)).collect();
    let is_bottom = |name: &str| name.starts_with("bot");
    let bottoms = model.layers().filter(|(name, _)| is_bottom(name)).count();
    let found_bottoms = blob.layers().filter(|layer| layer.stack == blob::Stack::Bottom).count();
    ensure!(
        found == wanted && bottoms == found_bottoms,
        "the layers have {found:?} inputs and outputs, {found_bottoms} of them before the \
         interaction, but the model's have {wanted:?}, {bottoms} of them before"
    );
    for ((_, layer), from) in model.layers_mut().zip(blob.layers()) {
        let [(_, weights), (_, biases)] = layer.parameters_mut();
        biases.values_mut().copy_from_slice(from.bias);
        // A blob's are transposed.
        for (at, weight) in weights.values_mut().iter_mut().enumerate() {
            let (output, input) = (at / from.inputs, at % from.inputs);
            let at = input * from.outputs + output;
            *weight = from.weights.get(at).context("a layer is short")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use ttrec::{
        DigitOrder, TtShape,
        train::{Checkpointed, Initializer, Optimizer, TtTable},
    };

    #[test]
    fn cores_have_the_rows_that_they_are_set_to_in_any_order_of_digits() {
        for order in [DigitOrder::MostSignificantFirst, DigitOrder::LeastSignificantFirst] {
            for ranks in [[3, 4], [1, 4], [3, 2]] {
                let new = |ranks: &[u32], seed| {
                    let shape = TtShape::new(100, &[5, 4, 5], &[2, 3, 2], ranks).unwrap();
                    let shape = shape.with_digit_order(order);
                    TtTable::new(shape, Initializer::Gaussian, Optimizer::Sgd, seed).unwrap()
                };
                let wanted = rows_of(&new(&ranks, 1).table()).unwrap();
                // With room in some bonds.
                let mut table = new(&[3, 4], 2);
                let shape = *table.shape();
                let parameters = table.parameters_mut().iter_mut();
                let mut values: Vec<_> = parameters.map(|core| core.values_mut()).collect();
                let mut cores: Vec<_> = values.iter_mut().map(|core| &mut **core).collect();
                set_cores(&wanted, &shape, &mut cores).unwrap();
                drop(values);
                let scale = wanted.iter().map(|x| x.abs()).fold(0.0, f32::max);
                for (found, wanted) in rows_of(&table.table()).unwrap().iter().zip(&wanted) {
                    let error = (found - wanted).abs() / scale;
                    assert!(error < 1e-4, "{order:?} {ranks:?}: {found} {wanted}");
                }
            }
        }
        let shape = TtShape::new(100, &[5, 4, 5], &[2, 3, 2], &[1, 1]).unwrap();
        set_cores(&[0.0; 7], &shape, &mut []).unwrap_err();
    }

    #[test]
    fn means_are_of_the_rows_that_share_a_place() {
        let rows = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 4.0, 40.0, 5.0, 50.0];
        assert_eq!(means(&rows, 2, 3), [2.5, 25.0, 3.5, 35.0, 3.0, 30.0]);
        assert_eq!(means(&rows, 2, 5), rows);
        assert_eq!(means(&rows, 2, 1), [3.0, 30.0]);
    }
}
