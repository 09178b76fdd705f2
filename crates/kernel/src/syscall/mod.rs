//! System calls: one file per group, each with its table; [`table`] joins them.

pub mod absent;
pub mod attributes;
pub mod directory;
pub mod dispatch;
#[cfg(not(feature = "hosted"))]
pub mod entry;
mod epoll;
mod event;
mod exec;
pub mod file;
mod file_times;
mod futex;
mod ids;
mod inotify;
mod lock;
mod memfd;
mod memory;
pub mod names;
mod pipe;
mod poll;
mod prctl;
mod process;
mod process_vm;
mod random;
mod refused;
mod resource;
mod sched;
mod signal;
mod signalfd;
pub mod socket;
mod splice;
mod system;
pub mod table;
mod time;
mod timerfd;
pub mod trace;
pub mod transfer;
