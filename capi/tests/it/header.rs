//! `include/ttrec.h` is what cbindgen generates from the source.

use std::{env, fs, path::Path};

#[test]
fn the_header_is_in_step_with_the_source() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(here.join("cbindgen.toml")).expect("cbindgen.toml");
    let sources = ["status.rs", "bags.rs", "boundary/handle.rs", "search.rs", "abi.rs"];
    let builder = sources
        .iter()
        .fold(cbindgen::Builder::new().with_config(config), |builder, source| {
            builder.with_src(here.join("src").join(source))
        });
    let mut made = Vec::new();
    builder.generate().expect("cbindgen understands the source").write(&mut made);
    let made = String::from_utf8(made).unwrap();
    assert!(made.matches("ttrec_status ttrec_").count() > 5, "{made}");

    let path = here.join("include/ttrec.h");
    if env::var_os("UPDATE_HEADER").is_some() {
        fs::write(&path, &made).unwrap();
    }
    let kept = fs::read_to_string(&path).unwrap();
    assert!(
        kept == made,
        "{} is not what cbindgen generates from the source: run\n    UPDATE_HEADER=1 cargo test \
         -p ttrec-capi --test it header\nand see what changed: a change of a signature or a struct \
         needs another TTREC_ABI_VERSION",
        path.display()
    );
}
