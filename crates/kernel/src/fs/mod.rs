//! Files: what can be opened, the name space, and the file systems behind it.

pub mod access;
pub mod anonymous;
pub mod async_io;
pub mod caller;
pub mod clock;
pub mod context;
pub mod device;
pub mod devpts;
pub mod entry;
pub mod erofs;
pub mod fdtable;
pub mod file;
pub mod generated;
pub mod init;
pub mod inode;
pub mod lock;
pub mod mount;
pub mod names;
pub mod notify;
pub mod open;
pub mod overlay;
pub mod path;
pub mod proc;
pub mod size_limit;
pub mod special;
pub mod sys;
