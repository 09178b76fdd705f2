//! Resource limits (getrlimit(2)).

use crate::errno::{Errno, Result};

/// What is limited: Linux's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs, reason = "getrlimit(2)")]
pub enum Resource {
    Cpu = 0,
    FileSize = 1,
    Data = 2,
    Stack = 3,
    Core = 4,
    ResidentSet = 5,
    Processes = 6,
    OpenFiles = 7,
    LockedMemory = 8,
    AddressSpace = 9,
    Locks = 10,
    PendingSignals = 11,
    MessageQueues = 12,
    Nice = 13,
    RealtimePriority = 14,
    RealtimeTime = 15,
}

/// How many resources there are.
pub const RESOURCES: usize = 16;

/// No limit (RLIM_INFINITY).
pub const INFINITY: u64 = u64::MAX;

/// Soft and hard limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// What is enforced.
    pub soft: u64,
    /// How far the soft limit may be raised.
    pub hard: u64,
}

impl Limit {
    const fn both(value: u64) -> Self {
        Self { soft: value, hard: value }
    }
}

/// All limits of a process.
#[derive(Clone, Debug)]
pub struct Limits([Limit; RESOURCES]);

impl Limits {
    /// What the first program starts with: the values of a container under docker, where Linux's own are smaller.
    #[must_use]
    pub const fn initial() -> Self {
        let mut limits = [Limit::both(INFINITY); RESOURCES];
        limits[Resource::Stack as usize] = Limit { soft: 8 << 20, hard: INFINITY };
        limits[Resource::Core as usize] = Limit { soft: 0, hard: INFINITY };
        limits[Resource::OpenFiles as usize] = Limit { soft: 1024, hard: 1 << 20 };
        limits[Resource::LockedMemory as usize] = Limit::both(8 << 20);
        limits[Resource::PendingSignals as usize] = Limit::both(4096);
        limits[Resource::MessageQueues as usize] = Limit::both(819_200);
        limits[Resource::Nice as usize] = Limit::both(0);
        limits[Resource::RealtimePriority as usize] = Limit::both(0);
        Self(limits)
    }

    /// Both limits of a resource.
    #[must_use]
    pub const fn get(&self, resource: Resource) -> Limit {
        self.0[resource as usize]
    }

    /// Sets both limits; rules are the caller's.
    pub const fn set(&mut self, resource: Resource, limit: Limit) {
        self.0[resource as usize] = limit;
    }
}

impl TryFrom<u32> for Resource {
    type Error = Errno;

    fn try_from(number: u32) -> Result<Self> {
        Ok(match number {
            0 => Self::Cpu,
            1 => Self::FileSize,
            2 => Self::Data,
            3 => Self::Stack,
            4 => Self::Core,
            5 => Self::ResidentSet,
            6 => Self::Processes,
            7 => Self::OpenFiles,
            8 => Self::LockedMemory,
            9 => Self::AddressSpace,
            10 => Self::Locks,
            11 => Self::PendingSignals,
            12 => Self::MessageQueues,
            13 => Self::Nice,
            14 => Self::RealtimePriority,
            15 => Self::RealtimeTime,
            _ => return Err(Errno::EINVAL),
        })
    }
}
