//! Images that must be refused, each with an error that says what is wrong.

use tempfile::TempDir;
use torpor_kernel::errno::Errno;
use torpor_kernel::fs::erofs::{Erofs, ErofsError, Image};

use crate::image::{Patch, TestImage, mkfs, scratch_dir};
use crate::tree::{Data, Kind, Node, Tree};

const SUPERBLOCK: usize = Patch::SUPERBLOCK;

fn sample_dir() -> TempDir {
    let dir = scratch_dir();
    let file = Node::new("file", Kind::File(Data { size: 40_000, stored_blocks: vec![1] }));
    Tree { nodes: vec![file] }.make(dir.path());
    dir
}

fn refusal(bytes: &[u8]) -> ErofsError {
    TestImage::of_bytes(bytes).open().unwrap_err()
}

#[test]
fn no_superblock() {
    assert_eq!(Erofs::open(Image::from_static(b"")).unwrap_err(), ErofsError::NotErofs);
    assert_eq!(refusal(&[0; 1 << 16]), ErofsError::NotErofs);
    assert_eq!(refusal(b"#!/bin/sh\n"), ErofsError::NotErofs);
}

#[test]
fn truncated_at_every_length() {
    let image = mkfs(sample_dir().path(), &[]);
    for len in (0..image.len()).step_by(61).chain([image.len() - 1]) {
        let error = refusal(&image[..len]);
        if len < SUPERBLOCK + 128 {
            assert_eq!(error, ErofsError::NotErofs);
        } else {
            let (image_bytes, expected_bytes) = (len as u64, image.len() as u64);
            assert_eq!(error, ErofsError::Truncated { image_bytes, expected_bytes });
        }
    }
}

#[test]
fn superblock_bits_are_summed() {
    let image = mkfs(sample_dir().path(), &[]);
    assert!(TestImage::of_bytes(&image).open().is_ok());
    for byte in SUPERBLOCK..4096 {
        let mut damaged = image.clone();
        damaged[byte] ^= 0x10;
        assert!(TestImage::of_bytes(&damaged).open().is_err(), "byte {byte}");
    }
    let mut damaged = image;
    damaged[SUPERBLOCK + 48] ^= 1;
    assert!(matches!(refusal(&damaged), ErofsError::Checksum { .. }));
}

#[test]
fn features_and_geometry() {
    let image = Patch::of_directory(sample_dir().path(), &[]).0;
    let refused = |at: usize, value: u8| {
        let mut changed = image.clone();
        changed[SUPERBLOCK + at] = value;
        refusal(&changed)
    };
    assert_eq!(refused(80, 0x10), ErofsError::UnsupportedFeatures(0x10));
    assert_eq!(refused(83, 0x80), ErofsError::UnsupportedFeatures(0x8000_0000));
    assert_eq!(refused(12, 9), ErofsError::BlockSize(9));
    assert!(matches!(refused(90, 1), ErofsError::CorruptSuperblock(_)));
    assert!(matches!(refused(35, 0xff), ErofsError::CorruptSuperblock(_)));
    assert!(matches!(refused(40, 0xff), ErofsError::Corrupt { .. }));
}

#[test]
fn compressed_images() {
    let dir = scratch_dir();
    let path = dir.path().join("text");
    std::fs::write(&path, "the same line again\n".repeat(5000)).unwrap();
    // Plain lz4 marks only the file.
    let image = TestImage::of_directory(dir.path(), &["-zlz4hc"]);
    let erofs = image.erofs();
    let root = erofs.inode(erofs.root_nid()).unwrap();
    let (nid, _) = erofs.lookup(&root, b"text").unwrap().unwrap();
    let file = erofs.inode(nid).unwrap();
    assert_eq!(file.size_bytes, 100_000);
    let error = erofs.read_at(&file, 0, &mut [0; 10]).unwrap_err();
    assert!(matches!(error, ErofsError::Unsupported { .. }), "{error}");
    assert_eq!(error.errno(), Errno::EOPNOTSUPP);
    assert_eq!(erofs.page(&file, 0).unwrap_err(), error);
    // Packed tails and big clusters mark the image.
    let error = refusal(&mkfs(dir.path(), &["-zlz4hc", "-Eztailpacking"]));
    assert!(error.to_string().contains("ztailpacking"), "{error}");
    let error = refusal(&mkfs(dir.path(), &["-zlz4hc", "-C65536"]));
    assert!(error.to_string().contains("big_pcluster"), "{error}");
}

#[test]
fn second_device() {
    let dir = scratch_dir();
    let blob = dir.path().join("blob");
    let source = dir.path().join("source");
    let file = Node::new("file", Kind::File(Data::dense(40_000)));
    Tree { nodes: vec![file] }.make(&source);
    let device = format!("--blobdev={}", blob.display());
    let error = refusal(&mkfs(&source, &["--chunksize=4096", &device]));
    assert!(error.to_string().contains("device_table"), "{error}");
}

#[test]
fn data_outside_the_image() {
    let options = ["-Enoinline_data", "-Eforce-inode-extended"];
    let mut patch = Patch::of_directory(sample_dir().path(), &options);
    let (nid, inode_at) = (patch.nid("file"), patch.inode_at("file"));
    let last_block = patch.0.len() / 4096 - 1;
    patch.set_u32(inode_at + 16, last_block as u32);
    let image = patch.image();
    let erofs = image.erofs();
    let file = erofs.inode(nid).unwrap();
    let mut buf = [0; 4097];
    // What is inside can be read, what is not is an error and not a short read.
    assert_eq!(erofs.read_at(&file, 0, &mut buf[..4096]), Ok(4096));
    let error = erofs.read_at(&file, 0, &mut buf).unwrap_err();
    assert_eq!(error.errno(), Errno::EUCLEAN);
    assert_eq!(erofs.page(&file, 1).unwrap_err(), error);
    // The size is a matter of the inode alone; beyond the largest offset it is refused.
    patch.set_u32(inode_at + 12, 0x7fff_ffff);
    assert!(patch.image().erofs().inode(nid).is_ok());
    patch.set_u32(inode_at + 12, 0x8000_0000);
    assert!(matches!(patch.image().erofs().inode(nid), Err(ErofsError::Corrupt { .. })));
}
