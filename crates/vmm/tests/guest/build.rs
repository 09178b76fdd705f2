//! Links as crates/kernel-image does: a static executable whose ELF entry is the kernel header.
fn main() {
    for argument in
        ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--image-base=0x7ff000000000", "-Wl,-e,HEADER"]
    {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
