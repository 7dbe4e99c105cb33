//! Links as a Python extension on every system, also by `cargo build`: macOS asks for options that
//! only maturin would give.
fn main() {
    pyo3_build_config::add_extension_module_link_args();
}
