//! What the guest kernel and the VM process must agree on: the memory map, the
//! boot information, the rings, the doorbells and the clock page.
//!
//! Everything here is plain data in guest-physical memory. Each side treats
//! what the other wrote as untrusted: values are read once, by copy, and
//! checked before use.
#![no_std]
#![forbid(unsafe_code)]

pub mod boot;
pub mod clock;
pub mod endpoint;
pub mod frame;
pub mod handover;
pub mod layout;
pub mod ring;
pub mod shared;
pub mod trap;
