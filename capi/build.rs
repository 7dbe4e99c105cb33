//! Names the shared library for the linker: libttrec.so.N on Linux, N being the ABI version that
//! the header tells.

fn main() {
    println!("cargo::rerun-if-changed=include/ttrec.h");
    let header = include_str!("include/ttrec.h");
    let abi = header
        .split_once("#define TTREC_ABI_VERSION ")
        .expect("the header tells the ABI version")
        .1;
    let abi = abi.split_whitespace().next().expect("a number");
    let os = std::env::var("CARGO_CFG_TARGET_OS").expect("set by cargo");
    match os.as_str() {
        "linux" | "freebsd" => {
            println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libttrec.so.{abi}")
        }
        // Android packs libraries only under their plain names.
        "android" => println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libttrec.so"),
        "macos" | "ios" => {
            println!("cargo::rustc-cdylib-link-arg=-Wl,-install_name,@rpath/libttrec.dylib")
        }
        _ => {}
    }
}
