//! What a caller's `Progress` receives.

use std::{
    fs,
    sync::{Mutex, PoisonError},
};
use ttrec_convert::{
    Checkpoint, Progress,
    plan::{self, Bounds},
};

/// The outermost steps that have begun: what, length, and finished units.
#[derive(Default)]
struct Outermost {
    depth: u32,
    steps: Vec<(String, u64, u64)>,
}

#[derive(Default)]
struct Recorder(Mutex<Outermost>);

impl Recorder {
    fn with<T>(&self, run: impl FnOnce(&mut Outermost) -> T) -> T {
        run(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Progress for Recorder {
    fn begin(&self, what: &str, len: u64) {
        self.with(|seen| {
            if seen.depth == 0 {
                seen.steps.push((what.to_owned(), len, 0));
            }
            seen.depth += 1;
        });
    }

    fn advance(&self, units: u64) {
        self.with(|seen| {
            if let (1, Some(last)) = (seen.depth, seen.steps.last_mut()) {
                last.2 += units;
            }
        });
    }

    fn finish(&self) {
        self.with(|seen| seen.depth -= 1);
    }
}

/// A .npy file of a float32 table.
fn npy(rows: usize, columns: usize) -> Vec<u8> {
    let header =
        format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend(118u16.to_le_bytes());
    bytes.extend(format!("{header:117}\n").bytes());
    bytes.extend((0..rows * columns).flat_map(|at| ((at * at % 97) as f32 - 48.0).to_le_bytes()));
    bytes
}

#[test]
fn a_plan_is_one_step_that_ends_complete() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("emb.npy");
    fs::write(&path, npy(120, 12)).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let spec = plan::detect(&checkpoint).unwrap();
    let bounds = Bounds {
        budget: Some("50%".parse().unwrap()),
        max_error: None,
        max_nanoseconds: None,
        frequencies: None,
        judge: None,
        memory: 512 << 20,
    };
    let seen = Recorder::default();
    plan::plan(&checkpoint, &spec, &bounds, &seen).unwrap();
    seen.with(|seen| {
        assert_eq!(seen.depth, 0);
        assert_eq!(seen.steps, [("candidates".to_owned(), 1000, 1000)]);
    });
}
