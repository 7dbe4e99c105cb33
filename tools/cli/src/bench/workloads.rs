//! The sizes of the workloads. `.ci/instructions` counts the instructions of the same ones.

/// FBTT's benchmark shape: rows, columns, row factors, and two lists of column factors.
pub(super) const ROWS: u64 = 11_000_000;
pub(super) const DIM: usize = 64;
pub(super) const ROW_FACTORS: [u32; 3] = [200, 220, 250];
pub(super) const COLUMN_FACTORS: [[u32; 3]; 2] = [[4, 4, 4], [2, 2, 16]];
pub(super) const RANKS: [u32; 3] = [16, 32, 64];
/// The bags of a batch, and the lookups of a bag.
pub(super) const BAGS: usize = 512;
pub(super) const BAG: usize = 20;

/// The column factors of `ttrec train`, whose core 0 takes the least significant digit, and ranks
/// that its tables have (docs/quality.md).
pub(super) const TRAINED: [u32; 3] = [2, 1, 32];
pub(super) const TRAINED_RANKS: [u32; 3] = [8, 16, 32];

/// Criteo Kaggle's seven largest tables and their row factors, and the rows of the nineteen others.
pub(super) const KAGGLE_TT: [(u64, [u32; 3]); 7] = [
    (10_131_227, [200, 220, 250]),
    (8_351_593, [200, 200, 209]),
    (7_046_547, [200, 200, 200]),
    (5_461_306, [166, 175, 188]),
    (2_202_608, [125, 130, 136]),
    (286_181, [53, 72, 75]),
    (142_572, [50, 52, 55]),
];
pub(super) const KAGGLE_DENSE: [u64; 19] = [
    1460, 583, 305, 24, 12_517, 633, 3, 93_145, 5683, 3194, 27, 14_992, 10, 5652, 2173, 4, 18, 15,
    105,
];
pub(super) const KAGGLE_DIM: usize = 16;
pub(super) const KAGGLE_COLUMN_FACTORS: [u32; 3] = [2, 2, 4];
