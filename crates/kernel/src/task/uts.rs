//! What uname(2) tells.

use crate::errno::{Errno, Result};
use alloc::vec::Vec;
use core::cell::RefCell;

/// The longest name in bytes (__NEW_UTS_LEN).
pub const MAX_NAME_BYTES: usize = 64;
/// Name of the kernel whose interface this is.
pub const SYSTEM: &str = "Linux";
/// The version of Linux whose interface this follows, and whose it is.
pub const RELEASE: &str = "6.6.0-torpor";
/// The version of this kernel.
pub const VERSION: &str = concat!("#1 torpor ", env!("CARGO_PKG_VERSION"));
/// The processor's architecture.
pub const MACHINE: &str = "x86_64";

struct Names {
    host: RefCell<Vec<u8>>,
    /// As on Linux the NIS domain's name is "(none)" until somebody sets it.
    domain: RefCell<Option<Vec<u8>>>,
}

crate::global! {
    static NAMES: Names = Names { host: RefCell::new(Vec::new()), domain: RefCell::new(None) };
}

/// The host's name.
#[must_use]
pub fn host_name() -> Vec<u8> {
    NAMES.with(|names| names.host.borrow().clone())
}

/// Sets the host's name.
///
/// # Errors
/// EINVAL if it is too long.
pub fn set_host_name(name: &[u8]) -> Result<()> {
    let name = checked(name)?;
    NAMES.with(|names| *names.host.borrow_mut() = name);
    Ok(())
}

/// The NIS domain's name.
#[must_use]
pub fn domain_name() -> Vec<u8> {
    NAMES.with(|names| names.domain.borrow().clone().unwrap_or_else(|| b"(none)".to_vec()))
}

/// Sets the NIS domain's name.
///
/// # Errors
/// EINVAL if it is too long.
pub fn set_domain_name(name: &[u8]) -> Result<()> {
    let name = checked(name)?;
    NAMES.with(|names| *names.domain.borrow_mut() = Some(name));
    Ok(())
}

fn checked(name: &[u8]) -> Result<Vec<u8>> {
    if name.len() > MAX_NAME_BYTES { Err(Errno::EINVAL) } else { Ok(name.to_vec()) }
}
