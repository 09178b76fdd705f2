//! Builds the guest kernel (crates/kernel-image) with its own flags, so that the VM process carries it.
//!
//! The kernel is always a release build; it is linked at a fixed address and needs neither libc nor a loader.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    println!("cargo:rerun-if-env-changed=TORPOR_GUEST_KERNEL");
    if let Ok(kernel) = env::var("TORPOR_GUEST_KERNEL") {
        // One that was built elsewhere, for work on the VM process alone.
        println!("cargo:rustc-env=TORPOR_KERNEL_ELF={kernel}");
        return;
    }
    let crates = PathBuf::from(variable("CARGO_MANIFEST_DIR")).join("..");
    for name in ["kernel-image", "kernel", "abi", "erofs"] {
        for part in ["src", "Cargo.toml", "Cargo.lock", "build.rs"] {
            let path = crates.join(name).join(part);
            if path.exists() {
                println!("cargo:rerun-if-changed={}", path.display());
            }
        }
    }
    let manifest = crates.join("kernel-image/Cargo.toml");
    // Beside the profiles' directories, so that debug, release and clippy share one build of the kernel.
    let out_dir = PathBuf::from(variable("OUT_DIR"));
    let target_dir =
        out_dir.ancestors().nth(4).expect("OUT_DIR is target/PROFILE/build/PACKAGE/out").join("guest-kernel");
    build_kernel(&manifest, &target_dir);
    let kernel = target_dir.join(TARGET).join("release/torpor-kernel-image");
    assert!(
        kernel.exists(),
        "{} was not built; is that the name of the binary of crates/kernel-image?",
        kernel.display()
    );
    println!("cargo:rustc-env=TORPOR_KERNEL_ELF={}", kernel.display());
}

fn build_kernel(manifest: &Path, target_dir: &Path) {
    // How it is linked is said by its own build script.
    let flags = ["-Cpanic=abort", "-Crelocation-model=pic", "-Cforce-frame-pointers=yes"];
    let mut cargo = Command::new(variable("CARGO"));
    cargo.args(["build", "--release", "--locked", "--target", TARGET, "--manifest-path"]).arg(manifest);
    cargo.arg("--target-dir").arg(target_dir);
    // What this build was asked for (static linking, clippy as the compiler, another target) is not the kernel's affair.
    for (name, _) in env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        let inherited = name.starts_with("CARGO_ENCODED_")
            || name.starts_with("CARGO_BUILD_")
            || name.starts_with("CARGO_PROFILE_")
            || name.starts_with("CARGO_CFG_")
            || name.starts_with("CARGO_FEATURE_")
            || matches!(
                &*name,
                "RUSTFLAGS"
                    | "RUSTC"
                    | "RUSTC_WRAPPER"
                    | "RUSTC_WORKSPACE_WRAPPER"
                    | "CLIPPY_ARGS"
                    | "CARGO_TARGET_DIR"
            );
        if inherited {
            cargo.env_remove(name);
        }
    }
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
    let status = cargo.status().expect("cargo runs: it is what runs this script");
    assert!(status.success(), "building the guest kernel failed: see above");
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name} for build scripts"))
}
