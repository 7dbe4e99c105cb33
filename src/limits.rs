//! What no shape and no blob exceeds: the bounds that make sizes computable, and that error
//! messages name.

/// The most cores a tensor train may have here.
pub const MAX_CORES: usize = 6;
/// The most rows a table may have: 2^40.
pub const MAX_NUM_EMBEDDINGS: u64 = 1 << 40;
/// The most columns a table may have: 2^16.
pub const MAX_EMBEDDING_DIM: u64 = 1 << 16;
/// The largest rank: 2^16.
pub const MAX_RANK: u64 = 1 << 16;
/// The largest row factor: 2^31 - 1.
pub const MAX_ROW_FACTOR: u64 = i32::MAX as u64;

/// What [`Blob::parse`](crate::Blob::parse) wants its buffer aligned to, and what sections inside a
/// blob are aligned to, in bytes.
pub const ALIGNMENT: usize = 64;
/// The format version that this crate reads and writes.
pub const VERSION: u32 = 1;
/// The most tables a blob may hold.
pub const MAX_TABLES: usize = 1 << 16;
/// The most layers a model may have, both of its perceptrons together.
pub const MAX_LAYERS: usize = 64;
/// The most inputs, or outputs, of a layer: 2^20.
pub const MAX_LAYER_WIDTH: u64 = 1 << 20;
/// The most tables a model may look up.
pub const MAX_MODEL_TABLES: usize = 1 << 10;
/// The longest table name, in bytes.
pub const MAX_NAME_LEN: usize = 1 << 10;
