//! Sets the shared library's name, which programs that link it look for: libttrec.so.N on Linux,
//! where N is the header's ABI version.

fn main() {
    println!("cargo::rerun-if-changed=include/ttrec.h");
    let header = include_str!("include/ttrec.h");
    let abi = header
        .split_once("#define TTREC_ABI_VERSION ")
        .expect("the header defines the ABI version")
        .1;
    let abi = abi.split_whitespace().next().expect("a number");
    let os = std::env::var("CARGO_CFG_TARGET_OS").expect("set by cargo");
    match os.as_str() {
        "linux" | "freebsd" => {
            println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libttrec.so.{abi}")
        }
        // Android packages only libraries without a version in their names.
        "android" => println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libttrec.so"),
        "macos" | "ios" => {
            println!("cargo::rustc-cdylib-link-arg=-Wl,-install_name,@rpath/libttrec.dylib")
        }
        _ => {}
    }
}
