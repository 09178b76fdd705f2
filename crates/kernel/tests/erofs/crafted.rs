//! What the format allows and mkfs.erofs 1.5 does not write, and directories that break its rules.

use std::fs;

use torpor_kernel::fs::erofs::{ErofsError, Extent, FilePage, Inode};

use crate::compare::{Times, compare};
use crate::image::{Patch, TestImage, scratch_dir};
use crate::tree::{Data, Kind, Node, Tree};

#[test]
fn chunks_that_are_holes() {
    for options in [&["--chunksize=8192"][..], &["--chunksize=8192", "-Eforce-chunk-indexes"]] {
        let dir = scratch_dir();
        let stored = Data { size: 41_000, stored_blocks: vec![0, 1, 4, 5] };
        Tree { nodes: vec![Node::new("file", Kind::File(stored))] }.make(dir.path());
        let mut patch = Patch::of_directory(dir.path(), options);
        // The table of chunks follows the inode, which is compact or extended.
        let inode_at = patch.inode_at("file");
        let table_at = inode_at + if patch.0[inode_at] & 1 == 0 { 32 } else { 64 };
        let (entry_bytes, address_at) = if options.len() == 1 { (4, 0) } else { (8, 4) };
        // One zero chunk stands for all; two of them become holes.
        let zero_chunk = patch.u32(table_at + entry_bytes + address_at);
        for chunk in [1, 4] {
            let at = table_at + chunk * entry_bytes + address_at;
            assert_eq!(patch.u32(at), zero_chunk);
            patch.set_u32(at, u32::MAX);
        }
        let image = patch.image();
        let erofs = image.erofs();
        compare(&erofs, dir.path(), Times::Kept).unwrap();
        let file = erofs.inode(patch.nid("file")).unwrap();
        assert_eq!(erofs.page(&file, 3), Ok(FilePage::Hole));
        assert!(matches!(erofs.page(&file, 4), Ok(FilePage::Mapped { nr_pages: 2, .. })));
        assert!(matches!(erofs.page(&file, 7), Ok(FilePage::Mapped { nr_pages: 1, .. })));
        assert_eq!(erofs.page(&file, 11), Ok(FilePage::BeyondEnd));
        assert_eq!(erofs.extent(&file, 9000), Ok(Some(Extent::Hole { len_bytes: 2 * 8192 - 9000 })));
    }
}

#[test]
fn bytes_after_the_end_in_the_last_block_are_not_mapped() {
    let dir = scratch_dir();
    Tree { nodes: vec![Node::new("file", Kind::File(Data::dense(5000)))] }.make(dir.path());
    let mut patch = Patch::of_directory(dir.path(), &["-Enoinline_data"]);
    let nid = patch.nid("file");
    let block = patch.u32(patch.inode_at("file") + 16) as usize;
    let page = |patch: &Patch| {
        let image = patch.image();
        let erofs = image.erofs();
        compare(&erofs, dir.path(), Times::Kept).unwrap();
        erofs.page(&erofs.inode(nid).unwrap(), 1).unwrap()
    };
    assert!(matches!(page(&patch), FilePage::Mapped { nr_pages: 1, .. }));
    patch.0[(block + 2) * 4096 - 1] = 1;
    assert_eq!(page(&patch), FilePage::Copied);
}

/// An image in which "dir" is a directory made of these blocks: a file, turned into one.
fn directory(blocks: &[u8]) -> (TestImage, Inode) {
    let dir = scratch_dir();
    fs::write(dir.path().join("dir"), blocks).unwrap();
    let mut patch = Patch::of_directory(dir.path(), &["-Enoinline_data"]);
    let inode_at = patch.inode_at("dir");
    patch.set_u16(inode_at + 4, 0o040_755);
    let image = patch.image();
    let inode = image.erofs().inode(patch.nid("dir")).unwrap();
    (image, inode)
}

/// A block with these names, as they should be laid out; entry i has the number i.
fn block(names: &[&[u8]]) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut bytes: Vec<u8> = Vec::new();
    for (i, name) in names.iter().enumerate() {
        entries.extend((i as u64).to_le_bytes());
        entries.extend(((names.len() * 12 + bytes.len()) as u16).to_le_bytes());
        entries.extend([1, 0]);
        bytes.extend(*name);
    }
    entries.extend(bytes);
    entries
}

/// All names up to the end or the first error.
fn names(image: &TestImage, dir: &Inode) -> Result<Vec<Vec<u8>>, ErofsError> {
    let erofs = image.erofs();
    let mut names = Vec::new();
    let mut cookie = 0;
    while let Some(entry) = erofs.readdir(dir, cookie)? {
        names.push(entry.name.as_bytes().to_vec());
        cookie = entry.next_cookie;
    }
    Ok(names)
}

#[test]
fn the_longest_names() {
    let (a, b) = ([b'a'; 255], [b'b'; 255]);
    let (image, dir) = directory(&block(&[&a, &b]));
    assert_eq!(names(&image, &dir).unwrap(), [&a[..], &b[..]]);
    assert_eq!(image.erofs().lookup(&dir, &b).unwrap().unwrap().0, 1);
    assert_eq!(image.erofs().lookup(&dir, &a[..254]).unwrap(), None);
    // The last name of a whole block ends at its end or at a NUL.
    let mut whole = block(&[&a, &b]);
    whole.resize(4096, 0);
    whole.extend(block(&[b"c"]));
    let (image, dir) = directory(&whole);
    assert_eq!(names(&image, &dir).unwrap(), [&a[..], &b[..], b"c"]);
    assert_eq!(image.erofs().lookup(&dir, b"c").unwrap().unwrap().0, 0);
    for too_long in [[&[b'a'; 256][..], b"b"], [b"a", &[b'b'; 256][..]]] {
        let (image, dir) = directory(&block(&too_long));
        assert!(matches!(names(&image, &dir), Err(ErofsError::Corrupt { .. })));
    }
}

#[test]
fn names_that_are_none() {
    for bad in [&b""[..], b"a/b", b"/", b"a\0b", b"\0"] {
        let (image, dir) = directory(&block(&[bad, b"z"]));
        assert!(matches!(names(&image, &dir), Err(ErofsError::Corrupt { .. })), "{bad:?}");
    }
}

#[test]
fn blocks_that_are_none() {
    let good = block(&[b"a", b"b"]);
    // The first name's place is the number of entries.
    for place in [0, 1, 11, 13, 26, 4092, 0xffff] {
        let mut bad = good.clone();
        bad[8..10].copy_from_slice(&u16::to_le_bytes(place));
        let (image, dir) = directory(&bad);
        assert!(matches!(names(&image, &dir), Err(ErofsError::Corrupt { .. })), "{place}");
        assert!(image.erofs().lookup(&dir, b"a").is_err(), "{place}");
    }
    // The second name starts before the first, or behind the block.
    for place in [0, 23, 24, 0x1000, 0xffff] {
        let mut bad = good.clone();
        bad[20..22].copy_from_slice(&u16::to_le_bytes(place));
        let (image, dir) = directory(&bad);
        assert!(matches!(names(&image, &dir), Err(ErofsError::Corrupt { .. })), "{place}");
    }
    for len in 0..good.len() {
        let (image, dir) = directory(&good[..len]);
        let found = names(&image, &dir).unwrap_or_default();
        assert!(found.len() < 2, "{len}: {found:?}");
    }
}

#[test]
fn unsorted_directories_are_listed_whole() {
    let (image, dir) = directory(&block(&[b"m", b"c", b"z", b"a", b"a"]));
    assert_eq!(names(&image, &dir).unwrap(), [b"m", b"c", b"z", b"a", b"a"]);
    // Lookup may miss, but ends, and never finds another name.
    for name in [b"a", b"c", b"m", b"z"] {
        if let Some((nid, _)) = image.erofs().lookup(&dir, name).unwrap() {
            assert_eq!([b"m", b"c", b"z", b"a", b"a"][nid as usize], name);
        }
    }
}
