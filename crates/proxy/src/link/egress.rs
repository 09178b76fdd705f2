//! The guest's own connections, in the runtime's terms.

use crate::watched::Watched;
use std::io;
use std::task::{Context, Poll};
use tokio::io::Interest;
use torpor_streams::policy::Policy;
use torpor_streams::sockets::Sockets;

/// Looks before other tasks get their turn.
const ROUNDS: usize = 8;

/// See the module's text.
pub(super) struct Egress {
    pub(super) sockets: Sockets,
    /// The same epoll instance as the sockets'.
    epoll: Watched,
}

impl Egress {
    pub(super) fn new(policy: Policy) -> io::Result<Self> {
        let sockets = Sockets::new(policy, Vec::new(), None)?;
        let epoll = Watched::with(sockets.as_fd().try_clone_to_owned()?, Interest::READABLE)?;
        Ok(Self { sockets, epoll })
    }

    /// Takes in what the sockets have to say.
    pub(super) fn poll_look(&mut self, cx: &mut Context<'_>) {
        for _ in 0..ROUNDS {
            let Poll::Ready(Ok(mut guard)) = self.epoll.poll_read_ready(cx) else { return };
            if !self.sockets.look() {
                guard.clear_ready();
            }
        }
        cx.waker().wake_by_ref();
    }
}
