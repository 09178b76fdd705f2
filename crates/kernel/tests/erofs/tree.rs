//! Source trees: a description that proptest can make up, and the files that it describes.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, chownat, lsetxattr, makedev, mknodat,
    utimensat,
};

/// struct vfs_cap_data, version 2: effective, permitted bit 10.
pub(crate) const CAP_NET_BIND_SERVICE: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// struct posix_acl_xattr, version 2: owner rw, user 1234 r, group r, mask r, others none.
pub(crate) const ACL_USER_1234_READS: [u8; 44] = [
    2, 0, 0, 0, //
    1, 0, 6, 0, 255, 255, 255, 255, //
    2, 0, 4, 0, 0xd2, 4, 0, 0, //
    4, 0, 4, 0, 255, 255, 255, 255, //
    16, 0, 4, 0, 255, 255, 255, 255, //
    32, 0, 0, 0, 255, 255, 255, 255,
];

/// Content of a file: pseudo-random bytes in the 4096-byte blocks listed, holes between them.
#[derive(Clone, Debug)]
pub(crate) struct Data {
    pub(crate) size: usize,
    pub(crate) stored_blocks: Vec<usize>,
}

impl Data {
    pub(crate) fn dense(size: usize) -> Self {
        Self { size, stored_blocks: (0..size.div_ceil(4096)).collect() }
    }

    fn write(&self, path: &Path) {
        use std::os::unix::fs::FileExt;
        let file = fs::File::create(path).unwrap();
        file.set_len(self.size as u64).unwrap();
        for &block in &self.stored_blocks {
            let start = block * 4096;
            let len = self.size.saturating_sub(start).min(4096);
            // Differs from block to block and from file to file.
            let mut state = (self.size * 31 + block * 7 + 1) as u32;
            let bytes: Vec<u8> = (0..len)
                .map(|_| {
                    state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (state >> 24) as u8
                })
                .collect();
            file.write_all_at(&bytes, start as u64).unwrap();
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    File(Data),
    Dir(Vec<Node>),
    Symlink(String),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
    Socket,
}

#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
    /// Attributes that only root may set.
    pub(crate) privileged_xattrs: Vec<(String, Vec<u8>)>,
}

#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) nodes: Vec<Node>,
}

impl Node {
    pub(crate) fn new(name: &str, kind: Kind) -> Self {
        Self {
            name: name.into(),
            kind,
            mode: 0o755,
            owner: None,
            mtime: None,
            xattrs: vec![],
            privileged_xattrs: vec![],
        }
    }

    fn make(&self, parent: &Path, privileged: bool) {
        let path = parent.join(&self.name);
        // Two nodes of a directory may have drawn the same name; the first has it.
        if path.symlink_metadata().is_ok() {
            return;
        }
        let node = |file_type, major, minor| {
            let mode = Mode::from_raw_mode(0o600);
            mknodat(CWD, &path, file_type, mode, makedev(major, minor)).unwrap();
        };
        match &self.kind {
            Kind::File(data) => data.write(&path),
            Kind::Dir(nodes) => {
                fs::create_dir(&path).unwrap();
                for node in nodes {
                    node.make(&path, privileged);
                }
            }
            Kind::Symlink(target) => symlink(target, &path).unwrap(),
            Kind::Fifo => node(FileType::Fifo, 0, 0),
            Kind::Socket => node(FileType::Socket, 0, 0),
            Kind::CharDevice(..) | Kind::BlockDevice(..) if !privileged => return,
            Kind::CharDevice(major, minor) => node(FileType::CharacterDevice, *major, *minor),
            Kind::BlockDevice(major, minor) => node(FileType::BlockDevice, *major, *minor),
        }
        let is_link = matches!(self.kind, Kind::Symlink(_));
        let no_follow = AtFlags::SYMLINK_NOFOLLOW;
        if let Some((uid, gid)) = self.owner.filter(|_| privileged) {
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            chownat(CWD, &path, owner.0, owner.1, no_follow).unwrap();
        }
        if !is_link {
            fs::set_permissions(&path, fs::Permissions::from_mode(self.mode)).unwrap();
        }
        // The user namespace of attributes is for files and directories only: xattr(7).
        if matches!(self.kind, Kind::File(_) | Kind::Dir(_)) {
            let privileged_xattrs = self.privileged_xattrs.iter().filter(|_| privileged);
            for (name, value) in self.xattrs.iter().chain(privileged_xattrs) {
                lsetxattr(&path, name.as_str(), value, XattrFlags::empty()).unwrap();
            }
        }
        if let Some((tv_sec, ns)) = self.mtime {
            let time = Timespec { tv_sec, tv_nsec: ns.into() };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, &path, &times, no_follow).unwrap();
        }
    }
}

impl Tree {
    /// Makes the files below `root`, a directory that may be there already.
    pub(crate) fn make(&self, root: &Path) {
        let privileged = rustix::process::geteuid().is_root();
        if !privileged {
            eprintln!("SKIPPED: devices, owners and privileged attributes, for they need root");
        }
        fs::create_dir_all(root).unwrap();
        for node in &self.nodes {
            node.make(root, privileged);
        }
    }
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "[a-zA-Z0-9._-]{1,12}".prop_filter("not a name", |n| n != "." && n != ".."),
        1 => "[^/\0.]{1,40}",
        // mkfs.erofs 1.5 fails on a name of 255 bytes.
        1 => "x{250,254}",
    ]
}

fn data() -> impl Strategy<Value = Data> {
    let near_block = (0usize..20, -40isize..40).prop_map(|(blocks, rest)| (blocks * 4096).saturating_add_signed(rest));
    prop_oneof![near_block, 0usize..4096, 0usize..300_000].prop_flat_map(|size| {
        prop_oneof![
            Just(Data::dense(size)),
            proptest::sample::subsequence((0..size.div_ceil(4096)).collect::<Vec<_>>(), 0..=size.div_ceil(4096))
                .prop_map(move |stored_blocks| Data { size, stored_blocks }),
        ]
    })
}

fn kind() -> impl Strategy<Value = Kind> {
    // Beyond 8 and 12 bits the device number's encoding is in several parts.
    let device = || (0u32..4096, 0u32..(1 << 20));
    prop_oneof![
        10 => data().prop_map(Kind::File),
        2 => "[a-z/.]{1,60}".prop_map(Kind::Symlink),
        1 => (3900usize..4096).prop_map(|len| Kind::Symlink("t".repeat(len))),
        1 => device().prop_map(|(major, minor)| Kind::CharDevice(major, minor)),
        1 => device().prop_map(|(major, minor)| Kind::BlockDevice(major, minor)),
        1 => Just(Kind::Fifo),
        1 => Just(Kind::Socket),
    ]
}

fn node(kind: impl Strategy<Value = Kind>) -> impl Strategy<Value = Node> {
    let xattr = |prefix: &'static str| {
        let value = prop_oneof![Just(b"common".to_vec()), vec(any::<u8>(), 0..300)];
        ("[a-d]{1,3}|[a-z]{1,100}", value).prop_map(move |(name, value)| (format!("{prefix}{name}"), value))
    };
    (
        name(),
        kind,
        0u32..0o10_000,
        proptest::option::of((0u32..200_000, 0u32..200_000)),
        proptest::option::of((0i64..(1 << 33), 0u32..1_000_000_000)),
        vec(xattr("user."), 0..4),
        vec(xattr("trusted."), 0..3),
    )
        .prop_map(|(name, kind, mode, owner, mtime, xattrs, privileged_xattrs)| Node {
            name,
            kind,
            mode: mode | 0o700,
            owner,
            mtime,
            xattrs,
            privileged_xattrs,
        })
}

/// Trees of a few dozen nodes.
pub(crate) fn strategy() -> impl Strategy<Value = Tree> {
    let nodes = node(kind()).prop_recursive(4, 60, 8, |inner| node(vec(inner, 0..8).prop_map(Kind::Dir)));
    vec(nodes, 0..8).prop_map(|nodes| Tree { nodes })
}
