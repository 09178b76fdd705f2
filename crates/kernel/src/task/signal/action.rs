//! Dispositions: what a process does with each signal (sigaction(2)).

use super::number::{DefaultAction, SIGNALS, Signal, SignalSet};
use alloc::boxed::Box;
use bitflags::bitflags;
use core::cell::RefCell;
use linux_raw_sys::general as linux;

bitflags! {
    /// sa_flags.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ActionFlags: u64 {
        /// No SIGCHLD for children that stop or go on.
        const NOCLDSTOP = linux::SA_NOCLDSTOP as u64;
        /// Children leave no zombies.
        const NOCLDWAIT = linux::SA_NOCLDWAIT as u64;
        /// The handler takes three arguments.
        const SIGINFO = linux::SA_SIGINFO as u64;
        /// `restorer` is set.
        const RESTORER = linux::SA_RESTORER as u64;
        /// On the alternate stack.
        const ONSTACK = linux::SA_ONSTACK as u64;
        /// Interrupted system calls start again.
        const RESTART = linux::SA_RESTART as u64;
        /// The signal is not blocked in its handler.
        const NODEFER = linux::SA_NODEFER as u64;
        /// The disposition becomes the default when the handler is called.
        const RESETHAND = linux::SA_RESETHAND as u64;
        /// si_addr keeps its tag bits: accepted, there are none here.
        const EXPOSE_TAGBITS = linux::SA_EXPOSE_TAGBITS as u64;
    }
}

/// What to do with a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Action {
    /// SIG_DFL (0), SIG_IGN (1), or the handler's address.
    pub handler: u64,
    /// See [`ActionFlags`].
    pub flags: ActionFlags,
    /// Where the handler returns to.
    pub restorer: u64,
    /// What is blocked besides while the handler runs.
    pub mask: SignalSet,
}

/// The default disposition.
pub const SIG_DFL: u64 = 0;
/// Not even noticed.
pub const SIG_IGN: u64 = 1;

impl Action {
    /// What every signal starts with.
    pub const DEFAULT: Action =
        Action { handler: SIG_DFL, flags: ActionFlags::empty(), restorer: 0, mask: SignalSet::EMPTY };

    /// Whether the signal has no effect under this disposition.
    #[must_use]
    pub fn ignores(&self, signal: Signal) -> bool {
        match self.handler {
            SIG_IGN => true,
            SIG_DFL => matches!(signal.default_action(), DefaultAction::Ignore | DefaultAction::Continue),
            _ => false,
        }
    }
}

/// The dispositions of all signals; shared by what clone(2) makes with CLONE_SIGHAND.
pub struct Actions(RefCell<Box<[Action; SIGNALS]>>);

impl Default for Actions {
    fn default() -> Self {
        Self(RefCell::new(Box::new([Action::DEFAULT; SIGNALS])))
    }
}

impl Actions {
    /// One signal's.
    #[must_use]
    pub fn get(&self, signal: Signal) -> Action {
        self.0.borrow()[signal.index()]
    }

    /// Sets one signal's.
    pub fn set(&self, signal: Signal, action: Action) {
        self.0.borrow_mut()[signal.index()] = action;
    }

    /// A copy, for fork(2).
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self(RefCell::new(self.0.borrow().clone()))
    }

    /// As execve(2) leaves them: handlers become the default, what is ignored stays ignored.
    #[must_use]
    pub fn after_exec(&self) -> Self {
        let copy = self.duplicate();
        for action in copy.0.borrow_mut().iter_mut() {
            let handler = if action.handler == SIG_IGN { SIG_IGN } else { SIG_DFL };
            *action = Action { handler, ..Action::DEFAULT };
        }
        copy
    }

    /// The set of signals that are caught and of those that are ignored, for /proc/PID/status.
    #[must_use]
    pub fn caught_and_ignored(&self) -> (SignalSet, SignalSet) {
        let (mut caught, mut ignored) = (SignalSet::EMPTY, SignalSet::EMPTY);
        for (index, action) in self.0.borrow().iter().enumerate() {
            let bit = SignalSet(1 << index);
            match action.handler {
                SIG_DFL => {}
                SIG_IGN => ignored = ignored | bit,
                _ => caught = caught | bit,
            }
        }
        (caught, ignored)
    }
}

#[cfg(test)]
mod tests {
    use super::super::number::{SIGCHLD, SIGHUP, SIGTERM};
    use super::*;

    #[test]
    fn exec_keeps_what_is_ignored() {
        let actions = Actions::default();
        let handler = Action { handler: 0x1234, flags: ActionFlags::RESTART, ..Action::DEFAULT };
        actions.set(SIGTERM, handler);
        actions.set(SIGHUP, Action { handler: SIG_IGN, ..handler });
        assert_eq!(actions.caught_and_ignored(), (SignalSet::of(SIGTERM), SignalSet::of(SIGHUP)));
        let after = actions.after_exec();
        assert_eq!(after.get(SIGTERM), Action::DEFAULT);
        assert_eq!(after.get(SIGHUP), Action { handler: SIG_IGN, ..Action::DEFAULT });
        assert!(after.get(SIGHUP).ignores(SIGHUP));
        assert!(Action::DEFAULT.ignores(SIGCHLD));
        assert!(!handler.ignores(SIGCHLD));
    }
}
