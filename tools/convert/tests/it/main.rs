//! The integration tests of the library, one module a subject.

mod checkpoint;
mod foreign;
mod judge;
mod onnx;
mod progress;
mod word_vectors;
