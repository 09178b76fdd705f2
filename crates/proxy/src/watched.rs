//! Descriptors that the runtime watches, and the crate's one unsafe call.

use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor of our own, non-blocking by the calls that are made on it. It can't be taken out again.
pub struct Watched(AsyncFd<OwnedFd>);

impl Watched {
    /// Watches it in both directions.
    ///
    /// # Errors
    /// What epoll_ctl(2) gives.
    pub fn new(descriptor: OwnedFd) -> io::Result<Self> {
        Self::with(descriptor, Interest::READABLE | Interest::WRITABLE)
    }

    /// Watches it.
    ///
    /// # Errors
    /// What epoll_ctl(2) gives.
    pub fn with(descriptor: OwnedFd, interest: Interest) -> io::Result<Self> {
        // SAFETY: (1) an OwnedFd is open, and always gives the same number; (2) it is moved into the AsyncFd, which this
        // type hands out by shared reference only, so it is neither closed nor exchanged (`Deref` gives no `into_inner`
        // and no `get_mut`) before the AsyncFd is dropped, which deregisters it first; (3) a shared reference allows
        // dup2(2) over the number only to who writes unsafe code for that, and this crate has none.
        let watched = unsafe { AsyncFd::register_with_interest(descriptor, interest) };
        watched.map(Self).map_err(io::Error::from)
    }
}

impl Deref for Watched {
    type Target = AsyncFd<OwnedFd>;

    fn deref(&self) -> &AsyncFd<OwnedFd> {
        &self.0
    }
}
