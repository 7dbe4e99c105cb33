//! Plans that a judge of whole models accepts.

use safetensors::tensor::TensorView;
use std::{cell::Cell, fs, path::PathBuf};
use ttrec::{Blob, Workspace};
use ttrec_convert::{
    Checkpoint, Error, Options, Spec, convert,
    plan::{self, Bounds, Judge, Plan},
    spec::TableSpec,
};

const TABLES: [(&str, usize, usize); 3] = [("a", 300, 16), ("b", 200, 24), ("c", 120, 8)];

fn noise(table: usize, at: usize) -> f32 {
    let z = (at as u32).wrapping_mul(0x9E37_79B9) ^ (table as u32).wrapping_mul(0x85EB_CA6B);
    let z = (z ^ z >> 16).wrapping_mul(0x7FEB_352D);
    let z = (z ^ z >> 15).wrapping_mul(0x846C_A68B);
    (z ^ z >> 16) as f32 / u32::MAX as f32 - 0.5
}

fn value(table: usize, at: usize) -> f32 {
    noise(table, at) * 0.8f32.powi((at % TABLES[table].2) as i32)
}

/// Three tables, each of which has most of its norm in its first columns.
fn checkpoint(dir: &tempfile::TempDir) -> PathBuf {
    let arrays: Vec<(String, Vec<usize>, Vec<u8>)> = TABLES
        .iter()
        .enumerate()
        .map(|(table, &(name, rows, columns))| {
            let values = (0..rows * columns).flat_map(|at| value(table, at).to_le_bytes());
            (name.to_owned(), vec![rows, columns], values.collect())
        })
        .collect();
    let views = arrays.iter().map(|(name, shape, bytes)| {
        let view = TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes);
        (format!("emb.{name}"), view.unwrap())
    });
    let path = dir.path().join("model.safetensors");
    fs::write(&path, safetensors::serialize(views.collect::<Vec<_>>(), None).unwrap()).unwrap();
    path
}

/// The squared errors of the tables, each over its squared norm.
fn errors(checkpoint: &Checkpoint, spec: &Spec) -> Result<[f64; 3], Error> {
    let bytes = convert(checkpoint, spec, &Options::default(), &())?.to_blob()?;
    let blob = Blob::parse(&bytes).unwrap();
    let mut errors = [0.0; 3];
    for (table, (at, error)) in blob.tables().zip(errors.iter_mut().enumerate()) {
        let (mut row, mut workspace) = (vec![0.0; table.embedding_dim()], Workspace::new());
        let (mut difference, mut norm) = (0.0, 0.0);
        for index in 0..table.num_embeddings() {
            table.lookup(index, &mut row, workspace.for_table(&table, 1)).unwrap();
            for (column, &x) in row.iter().enumerate() {
                let wanted = f64::from(value(at, index as usize * row.len() + column));
                difference += (f64::from(x) - wanted).powi(2);
                norm += wanted * wanted;
            }
        }
        *error = difference / norm;
    }
    Ok(errors)
}

fn planned(
    checkpoint: &Checkpoint,
    budget: Option<&str>,
    max_increase: Option<f64>,
    loss: &dyn Fn(&Spec) -> Result<f64, Error>,
) -> Result<Plan, Error> {
    let bounds = Bounds {
        budget: budget.map(|budget| budget.parse().unwrap()),
        max_error: None,
        max_nanoseconds: None,
        frequencies: None,
        judge: Some(Judge { metric: "loss", max_increase, loss }),
        memory: 512 << 20,
    };
    plan::plan(checkpoint, &plan::detect(checkpoint)?, &bounds, &())
}

/// A loss that cares for the third table most, and has a part that errors do not explain.
#[test]
fn a_plan_is_the_smallest_that_its_judge_accepts() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&checkpoint(&dir)).unwrap();
    let calls = Cell::new(0);
    let weighted = |spec: &Spec| -> Result<f64, Error> {
        calls.set(calls.get() + 1);
        let [a, b, c] = errors(&checkpoint, spec)?;
        Ok(0.7 + 0.1 * a + 0.3 * b + 3.0 * c + 1e-4 * (1e4 * (a + b + c)).sin())
    };
    let judged = planned(&checkpoint, None, Some(0.02), &weighted).unwrap();
    let found = judged.judgement.as_ref().unwrap();
    assert!((found.exact_loss - 0.7).abs() < 1e-3, "{found:?}");
    assert!(found.increase <= 0.02, "{found:?}");
    assert_eq!(weighted(&judged.spec()).unwrap() - found.exact_loss, found.increase);
    assert!(
        found
            .to_string()
            .ends_with(&format!("{} choices were measured", found.choices.len()))
    );
    assert!(calls.get() < 80, "{} choices were measured", calls.get());
    for choice in found.choices.iter().filter(|choice| choice.increase <= 0.02) {
        assert!(choice.bytes >= judged.bytes, "{choice:?}");
    }

    // By squared error alone, a blob of as many bytes loses more.
    let budget = judged.bytes.to_string();
    let by_error = planned(&checkpoint, Some(&budget), None, &weighted).unwrap();
    let increase = by_error.judgement.unwrap().increase;
    assert!(increase > 0.02, "{increase} in {budget} bytes");

    // A budget that is large enough changes nothing; one that is not is refused.
    let same = planned(&checkpoint, Some("100%"), Some(0.02), &weighted).unwrap();
    assert!(same.bytes <= judged.bytes * 102 / 100);
    let error = planned(&checkpoint, Some("12%"), Some(0.02), &weighted)
        .unwrap_err()
        .to_string();
    assert!(error.contains("more than f32"), "{error}");
    // So is a loss that nothing keeps, and one that is no number.
    let error = planned(&checkpoint, None, Some(0.02), &|_| Ok(f64::NAN))
        .unwrap_err()
        .to_string();
    assert!(error.contains("the model has no loss on these examples"), "{error}");
    let failing = |_: &Spec| Err(Error::Input("no samples".to_owned()));
    let error = planned(&checkpoint, None, Some(0.02), &failing).unwrap_err().to_string();
    assert!(error.contains("no samples"), "{error}");
}

/// A loss that is higher for some candidates than for smaller ones.
#[test]
fn a_judge_finds_what_squared_error_finds() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&checkpoint(&dir)).unwrap();
    let uneven = |spec: &Spec| -> Result<f64, Error> {
        let [a, b, c] = errors(&checkpoint, spec)?;
        let odd = |table: &TableSpec| table.books.is_some_and(|books| books % 2 == 1);
        let penalty = 0.05 * spec.tables.iter().filter(|table| odd(table)).count() as f64;
        Ok(a + b + c + penalty)
    };
    let judged = planned(&checkpoint, None, Some(0.02), &uneven).unwrap();
    assert!(judged.judgement.unwrap().increase <= 0.02);
    let by_error = (6144..12288u64)
        .step_by(512)
        .map(|budget| planned(&checkpoint, Some(&budget.to_string()), None, &uneven).unwrap());
    let (accepted, refused): (Vec<Plan>, Vec<Plan>) =
        by_error.partition(|plan| plan.judgement.as_ref().unwrap().increase <= 0.02);
    let smallest = accepted.iter().map(|plan| plan.bytes).min().unwrap();
    // Some that are larger lose more.
    assert!(refused.iter().any(|plan| plan.bytes > smallest));
    assert!(judged.bytes <= smallest, "{} {smallest}", judged.bytes);
}

#[test]
fn a_senseless_budget_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    // Without any structure.
    let rows: Vec<u8> = (0..400 * 24).flat_map(|at| noise(0, at).to_le_bytes()).collect();
    let path = dir.path().join("noise.safetensors");
    let view = TensorView::new(safetensors::Dtype::F32, vec![400, 24], &rows).unwrap();
    fs::write(&path, safetensors::serialize([("emb", view)], None).unwrap()).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let plan = |budget: &str| planned(&checkpoint, Some(budget), None, &|_| Ok(0.0)).unwrap();
    let few = (1..).find_map(|percent| {
        planned(&checkpoint, Some(&format!("{percent}%")), None, &|_| Ok(0.0)).ok()
    });
    let few = few.unwrap();
    let least = few.sensible_budget.unwrap_or_else(|| panic!("an error of {}", few.error));
    assert!(few.error > 0.9, "{}", few.error);
    assert!(few.warning().unwrap().contains(&format!("is {least} bytes")), "{:?}", few.warning());
    let enough = plan(&least.to_string());
    assert!(enough.error <= 0.9 && enough.warning().is_none(), "{}", enough.error);
    assert!(least > few.bytes);
}
