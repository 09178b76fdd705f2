//! What programs wait for and on: pipes, event counters, timers and signals as descriptors, epoll(7), poll(2), inotify(7).

pub mod anon;
pub mod epoll;
pub mod eventfd;
pub mod inotify;
pub mod memfd;
pub mod pipe;
pub mod poll;
pub mod signalfd;
pub mod timerfd;
