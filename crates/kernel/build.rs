//! Builds the vDSO, a shared object that the kernel carries and maps into programs.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(variable("OUT_DIR"));
    for file in ["build.rs", "vdso/vdso.rs", "vdso/vdso.lds", "../abi/src/clock.rs"] {
        println!("cargo:rerun-if-changed={}", root.join(file).display());
    }
    let object = out.join("vdso.o");
    let shared = out.join("vdso.so");
    run(Command::new(variable("RUSTC"))
        .args(["--edition=2024", "--crate-name=vdso", "--crate-type=lib", "--emit=obj"])
        .args(["--target=x86_64-unknown-linux-gnu", "-Copt-level=2", "-Cpanic=abort", "-Crelocation-model=pic"])
        .args(["-Ccodegen-units=1", "-Cforce-unwind-tables=yes", "-Cembed-bitcode=no", "-Cdebuginfo=0"])
        .arg("-o")
        .arg(&object)
        .arg(root.join("vdso/vdso.rs")));
    // The linker that also links every Rust program here.
    let script = format!("-Wl,-T,{}", root.join("vdso/vdso.lds").display());
    run(Command::new("cc")
        .args(["-shared", "-nostdlib", "-nostartfiles", "-Wl,-soname,linux-vdso.so.1", "-Wl,--hash-style=both"])
        .args(["-Wl,-Bsymbolic", "-Wl,--gc-sections", "-Wl,--eh-frame-hdr", "-Wl,-z,defs", "-Wl,--build-id=none"])
        .args(["-Wl,-z,noexecstack", "-Wl,-z,max-page-size=4096", "-Wl,-s"])
        .arg(script)
        .arg("-o")
        .arg(&shared)
        .arg(&object));
    assert!(Path::new(&shared).exists(), "the linker has written nothing");
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
    assert!(status.success(), "{command:?} failed: see above");
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}
