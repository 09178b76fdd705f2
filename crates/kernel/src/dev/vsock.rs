//! /dev/vsock: tells which context this machine is (vsock(7)).

use super::device_metadata;
use crate::errno::{Errno, Result};
use crate::fs::device::make;
use crate::fs::file::{FileOps, OpenFile};
use crate::fs::inode::Metadata;
use crate::mm::addr::UserAddr;
use crate::mm::user;
use alloc::string::String;
use core::any::Any;
use torpor_abi::endpoint::network::GUEST_CID;

/// Minor number under the major one of miscellaneous devices; Linux gives it out at run time, from 256 on.
pub(super) const MINOR: u32 = 258;
/// IOCTL_VM_SOCKETS_GET_LOCAL_CID.
const GET_LOCAL_CID: u32 = 0x7b9;

pub(super) struct Vsock;

impl FileOps for Vsock {
    fn as_any(&self) -> &dyn Any {
        self
    }

    fn ioctl(&self, _file: &OpenFile, request: u32, argument: u64) -> Result<u64> {
        if request != GET_LOCAL_CID {
            return Err(Errno::ENOTTY);
        }
        user::write(UserAddr(argument), &GUEST_CID)?;
        Ok(0)
    }

    fn metadata(&self) -> Metadata {
        // Only ever opened through an inode, whose metadata counts.
        device_metadata(make(10, MINOR), 0o600)
    }

    fn describe(&self) -> String {
        String::from("device")
    }
}
