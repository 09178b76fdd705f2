//! `torpor-vmm run`: a microVM in the foreground.
//!
//! Two processes. The broker ([`broker`]) is what the user started: it parses options, opens every file, holds the
//! terminal, the standard streams and the signals. The VM process ([`vm`]) is its child, forked before any thread
//! exists, and has descriptors only: KVM, the image, and one end of a socket pair ([`torpor_streams::link`]). It runs the
//! guest. Neither trusts what it reads from the side nearer to the guest: the VM process checks rings, the broker checks
//! frames ([`torpor_streams::ledger`]).

pub mod broker;
pub mod cli;
pub mod error;
pub mod jail;
pub mod serve;
pub mod snapshot;
pub mod vm;
