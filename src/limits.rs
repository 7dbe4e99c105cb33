//! The limits of shapes and blobs. They keep every size computable without overflow.

/// The most cores of a tensor train.
pub const MAX_CORES: usize = 6;
/// The most indices of a table: 2^40.
pub const MAX_NUM_EMBEDDINGS: u64 = 1 << 40;
/// The most columns of a table: 2^16.
pub const MAX_EMBEDDING_DIM: u64 = 1 << 16;
/// The largest rank: 2^16.
pub const MAX_RANK: u64 = 1 << 16;
/// The largest row factor: 2^31 - 1.
pub const MAX_ROW_FACTOR: u64 = i32::MAX as u64;

/// The most books of a codebook table: 2^10.
pub const MAX_NUM_BOOKS: usize = 1 << 10;
/// The most entries of a book: 2^16.
pub const MAX_BOOK_LEN: usize = 1 << 16;

/// The alignment of a blob in memory, and of the sections in a blob, in bytes.
pub const ALIGNMENT: usize = 64;
/// The format version that this crate reads and writes.
pub const VERSION: u32 = 1;
/// The most tables of a blob.
pub const MAX_TABLES: usize = 1 << 16;
/// The most layers of a model, both perceptrons together.
pub const MAX_LAYERS: usize = 64;
/// The most inputs or outputs of a layer: 2^20.
pub const MAX_LAYER_WIDTH: u64 = 1 << 20;
/// The most tables that a model looks up.
pub const MAX_MODEL_TABLES: usize = 1 << 10;
/// The longest table name, in bytes.
pub const MAX_NAME_LEN: usize = 1 << 10;
