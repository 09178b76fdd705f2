//! The `torpor-vmm` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    torpor_vmm::broker::main()
}
