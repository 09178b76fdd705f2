//! The file system in memory: a tmpfs, or the writable root over a read-only EROFS image.
//!
//! Everything written here is state of the VM and stored with it, so a node takes from the image all that was never
//! changed: the pages of a file that were not written, the names of a directory that were not touched, the attributes
//! of what was only looked at. A node of the image exists in memory only while somebody uses it or something about it
//! has changed; then it is kept under its image number, which is its inode number before and after. So there is no
//! copying up: open files, mappings, locks and hard links stay what they are, and a renamed directory still reads its
//! untouched part from the image.

mod data;
mod dir;
mod file;
mod node;
mod ops;
mod pages;
mod tree;
mod xattr;

pub use node::Node;
pub use tree::{Limits, Lower, Tree, image_fault};
