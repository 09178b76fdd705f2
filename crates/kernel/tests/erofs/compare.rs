//! A source tree and an image of it, compared in everything that a program can ask for.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{lgetxattr, llistxattr};
use torpor_kernel::fs::erofs::{Erofs, Extent, FilePage, Inode};
use torpor_kernel::fs::inode::FileType;

/// Whether the image was made with the files' own times.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Times {
    Kept,
    Ignored,
}

struct Comparison<'a> {
    erofs: &'a Erofs,
    times: Times,
    /// Source (device, inode) to nid, and back: the same files must be the same.
    nids: HashMap<(u64, u64), u64>,
    sources: HashMap<u64, (u64, u64)>,
}

/// The first difference, if there is one.
pub(crate) fn compare(erofs: &Erofs, source: &Path, times: Times) -> Result<(), String> {
    let mut comparison = Comparison { erofs, times, nids: HashMap::new(), sources: HashMap::new() };
    comparison.node(source, erofs.root_nid(), None, true)
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result<(), String> {
    if found == expected {
        return Ok(());
    }
    Err(format!("{what}: image {found:?}, source {expected:?}"))
}

fn type_of(metadata: &fs::Metadata) -> FileType {
    let file_type = metadata.file_type();
    match () {
        () if file_type.is_dir() => FileType::Directory,
        () if file_type.is_symlink() => FileType::Symlink,
        () if file_type.is_char_device() => FileType::CharDevice,
        () if file_type.is_block_device() => FileType::BlockDevice,
        () if file_type.is_fifo() => FileType::Fifo,
        () if file_type.is_socket() => FileType::Socket,
        () => FileType::Regular,
    }
}

impl Comparison<'_> {
    fn node(&mut self, path: &Path, nid: u64, hint: Option<FileType>, is_root: bool) -> Result<(), String> {
        let inode = self.erofs.inode(nid).map_err(|e| format!("{}: {e}", path.display()))?;
        self.inode(path, &inode, hint, is_root).map_err(|e| format!("{}: {e}", path.display()))?;
        if inode.file_type == FileType::Directory { self.directory(path, &inode) } else { Ok(()) }
    }

    fn inode(&mut self, path: &Path, inode: &Inode, hint: Option<FileType>, is_root: bool) -> Result<(), String> {
        let metadata = path.symlink_metadata().unwrap();
        let file_type = type_of(&metadata);
        same("file type", inode.file_type, file_type)?;
        if !is_root {
            same("type in the directory", hint, Some(file_type))?;
        }
        same("mode", u32::from(inode.mode), metadata.mode())?;
        same("nlink", u64::from(inode.nlink), metadata.nlink())?;
        same("owner", (inode.uid, inode.gid), (metadata.uid(), metadata.gid()))?;
        same("device", u64::from(inode.rdev), metadata.rdev())?;
        if self.times == Times::Kept {
            let expected = (metadata.mtime(), metadata.mtime_nsec());
            same("mtime", (inode.mtime_s, i64::from(inode.mtime_ns)), expected)?;
        }
        let id = (metadata.dev(), metadata.ino());
        same("nid of the file", *self.nids.entry(id).or_insert(inode.nid), inode.nid)?;
        same("file of the nid", *self.sources.entry(inode.nid).or_insert(id), id)?;
        self.xattrs(path, inode)?;
        match file_type {
            FileType::Regular => self.content(path, inode),
            FileType::Symlink => {
                let target = fs::read_link(path).unwrap().into_os_string().into_vec();
                same("size", inode.size_bytes, target.len() as u64)?;
                same("target", self.erofs.readlink(inode).map_err(|e| e.to_string())?, target)
            }
            _ => Ok(()),
        }
    }

    fn directory(&mut self, path: &Path, inode: &Inode) -> Result<(), String> {
        let context = |what: String| format!("{}: {what}", path.display());
        let mut expected: BTreeSet<Vec<u8>> =
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_vec()).collect();
        expected.extend([b".".to_vec(), b"..".to_vec()]);
        let mut found = BTreeMap::new();
        let mut cookie = 0;
        while let Some(entry) = self.erofs.readdir(inode, cookie).map_err(|e| context(e.to_string()))? {
            let name = entry.name.as_bytes().to_vec();
            let again = self.erofs.lookup(inode, &name).map_err(|e| context(e.to_string()))?;
            same("lookup", again, Some((entry.nid, entry.file_type))).map_err(context)?;
            if found.insert(name, (entry.nid, entry.file_type)).is_some() {
                return Err(context("an entry is there twice".into()));
            }
            cookie = entry.next_cookie;
        }
        same("names", found.keys().cloned().collect(), expected).map_err(context)?;
        same("nid of .", found[&b"."[..]].0, inode.nid).map_err(context)?;
        for (name, (nid, hint)) in found {
            if name != b"." && name != b".." {
                self.node(&path.join(OsStr::from_bytes(&name)), nid, hint, false)?;
            }
        }
        Ok(())
    }

    fn xattrs(&self, path: &Path, inode: &Inode) -> Result<(), String> {
        let mut buf = vec![0; 65536];
        let len = llistxattr(path, &mut buf[..]).unwrap();
        let split = |list: &[u8]| -> BTreeSet<Vec<u8>> {
            list.split(|&b| b == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect()
        };
        let expected = split(&buf[..len]);
        let list = self.erofs.list_xattrs(inode).map_err(|e| e.to_string())?;
        same("attributes", split(&list), expected.clone())?;
        for name in expected {
            let len = lgetxattr(path, &name[..], &mut buf[..]).unwrap();
            let value = self.erofs.get_xattr(inode, &name).map_err(|e| e.to_string())?;
            same(&format!("attribute {}", name.escape_ascii()), value, Some(buf[..len].to_vec()))?;
        }
        Ok(())
    }

    fn content(&self, path: &Path, inode: &Inode) -> Result<(), String> {
        let expected = fs::read(path).unwrap();
        same("size", inode.size_bytes, expected.len() as u64)?;
        // Bytes beyond the end of the file must stay as they are.
        let mut all = vec![0xaa; expected.len() + 10];
        let len = self.erofs.read_at(inode, 0, &mut all).map_err(|e| e.to_string())?;
        same("bytes read", len, expected.len())?;
        if all[..len] != expected {
            let at = all.iter().zip(&expected).position(|(a, b)| a != b);
            return Err(format!("content differs at {at:?}"));
        }
        same("bytes after the end", &all[len..], &[0xaa; 10][..])?;
        for offset in [1, 4095, 4096, 4097, expected.len() / 2, expected.len(), expected.len() + 9] {
            let mut piece = [0; 5000];
            let len = self.erofs.read_at(inode, offset as u64, &mut piece).map_err(|e| e.to_string())?;
            let rest = expected.get(offset..).unwrap_or_default();
            let rest = &rest[..rest.len().min(piece.len())];
            if piece[..len] != *rest {
                return Err(format!("a read at {offset} differs"));
            }
        }
        self.extents(inode, &expected)?;
        self.pages(inode, &expected)
    }

    /// The extents cover the file without gaps, and hold its bytes.
    fn extents(&self, inode: &Inode, expected: &[u8]) -> Result<(), String> {
        let mut offset = 0u64;
        while let Some(extent) = self.erofs.extent(inode, offset).map_err(|e| e.to_string())? {
            let (Extent::Data { len_bytes, .. } | Extent::Hole { len_bytes }) = extent;
            let mut bytes = vec![0; len_bytes as usize];
            if let Extent::Data { offset_bytes, .. } = extent {
                self.erofs.image().copy_to(offset_bytes, &mut bytes).ok_or("extent outside")?;
            }
            if expected.get(offset as usize..).unwrap_or_default().get(..bytes.len()) != Some(&bytes) {
                return Err(format!("extent at {offset} differs"));
            }
            offset += len_bytes;
        }
        same("end of the extents", offset, expected.len() as u64)
    }

    /// What a program that maps the file sees: its bytes, zeros to the end of the page, then SIGBUS.
    fn pages(&self, inode: &Inode, expected: &[u8]) -> Result<(), String> {
        let nr_pages = expected.len().div_ceil(4096) as u64;
        for index in 0..nr_pages {
            let start = index as usize * 4096;
            let mut wanted = expected[start..expected.len().min(start + 4096)].to_vec();
            wanted.resize(4096, 0);
            let mut page = vec![0; 4096];
            match self.erofs.page(inode, index).map_err(|e| e.to_string())? {
                FilePage::Mapped { offset_bytes, nr_pages: run } => {
                    same("alignment of a mapped page", offset_bytes % 4096, 0)?;
                    same("run of pages inside the file", (1..=nr_pages - index).contains(&run), true)?;
                    self.erofs.image().copy_to(offset_bytes, &mut page).ok_or("page outside")?;
                }
                FilePage::Copied => {
                    self.erofs.read_at(inode, start as u64, &mut page).map_err(|e| e.to_string())?;
                }
                FilePage::Hole => {}
                FilePage::BeyondEnd => return Err(format!("page {index} is said to be beyond the end")),
            }
            if page != wanted {
                return Err(format!("page {index} differs"));
            }
        }
        let beyond = self.erofs.page(inode, nr_pages).map_err(|e| e.to_string())?;
        same("page after the end", beyond, FilePage::BeyondEnd)
    }
}
