//! Link arguments: a static executable at the kernel's address whose ELF entry is the kernel header.

fn main() {
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static",
        "-no-pie",
        "-Wl,--image-base=0x7ff000000000",
        "-Wl,-e,TORPOR_KERNEL_HEADER",
    ] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!("cargo::rerun-if-changed=build.rs");
}
