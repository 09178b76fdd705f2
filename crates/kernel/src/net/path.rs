//! Unix sockets with a name in the file system.

use super::socket::Socket;
use crate::errno::{Errno, Result};
use crate::fs::access::{self, WRITE};
use crate::fs::caller::Caller;
use crate::fs::inode::FileType;
use crate::fs::names;
use alloc::rc::Rc;
use core::any::Any;
use linux_raw_sys::general::AT_FDCWD;

/// Makes a socket inode at `path` and puts the socket behind it.
///
/// # Errors
/// EADDRINUSE if the name is taken; the path's errors.
pub(super) fn bind(socket: &Rc<Socket>, path: &[u8]) -> Result<()> {
    let caller = Caller::current();
    let new = caller.new_inode(FileType::Socket, 0o777, 0);
    let made = names::make(&caller, caller.walk_at(AT_FDCWD, path)?, new);
    let place = made.map_err(|error| if error == Errno::EEXIST { Errno::EADDRINUSE } else { error })?;
    let attachment = place.inode.attachment().ok_or(Errno::EOPNOTSUPP)?;
    attachment.set(&(Rc::clone(socket) as Rc<dyn Any>));
    Ok(())
}

/// The socket behind `path`.
///
/// # Errors
/// ECONNREFUSED if it is no socket or nobody is behind it; EACCES without permission to write to it.
pub(super) fn find(path: &[u8]) -> Result<Rc<Socket>> {
    let caller = Caller::current();
    let place = caller.find(AT_FDCWD, path, true)?;
    access::check(&place, &caller.creds, WRITE)?;
    if place.inode.metadata().file_type != FileType::Socket {
        return Err(Errno::ECONNREFUSED);
    }
    let attached = place.inode.attachment().and_then(|a| a.get()).ok_or(Errno::ECONNREFUSED)?;
    attached.downcast::<Socket>().map_err(|_| Errno::ECONNREFUSED)
}
