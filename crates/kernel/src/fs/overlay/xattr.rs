//! Extended attributes (xattr(7)).
//!
//! The first change copies those of the image; a change has to fit the limits of Linux and the tree's room.

use super::node::Node;
use super::tree::image_error;
use crate::errno::{Errno, Result};
use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use linux_raw_sys::general::{XATTR_CREATE, XATTR_REPLACE};

/// What an attribute costs besides its name and value.
const ATTRIBUTE_BYTES: u64 = 64;

#[derive(Default)]
pub(super) struct Xattrs(BTreeMap<Box<[u8]>, Box<[u8]>>);

impl Xattrs {
    pub(super) fn charged_bytes(&self) -> u64 {
        self.0.iter().map(|(name, value)| (name.len() + value.len()) as u64 + ATTRIBUTE_BYTES).sum()
    }
}

/// Whether a name is of a class that is stored here. Access control lists are not enforced, so they are not stored.
fn is_stored(name: &[u8]) -> bool {
    check_name(name).is_ok()
}

/// EOPNOTSUPP for a class that is not stored, EINVAL for a class without a name.
fn check_name(name: &[u8]) -> Result<()> {
    let classes = [b"user.".as_slice(), b"trusted.", b"security."];
    let class = classes.iter().find(|class| name.starts_with(class)).ok_or(Errno::EOPNOTSUPP)?;
    if name.len() > class.len() { Ok(()) } else { Err(Errno::EINVAL) }
}

impl Node {
    pub(super) fn get_xattr(&self, name: &[u8]) -> Result<Vec<u8>> {
        check_name(name)?;
        if let Some(xattrs) = &*self.xattrs.borrow() {
            return xattrs.0.get(name).map(|value| value.to_vec()).ok_or(Errno::ENODATA);
        }
        match (&self.tree.lower, &self.image) {
            (Some(lower), Some(image)) => {
                lower.erofs.get_xattr(image, name).map_err(image_error)?.ok_or(Errno::ENODATA)
            }
            _ => Err(Errno::ENODATA),
        }
    }

    pub(super) fn xattr_names(&self) -> Result<Vec<Box<[u8]>>> {
        if let Some(xattrs) = &*self.xattrs.borrow() {
            return Ok(xattrs.0.keys().cloned().collect());
        }
        match (&self.tree.lower, &self.image) {
            (Some(lower), Some(image)) => {
                let list = lower.erofs.list_xattrs(image).map_err(image_error)?;
                Ok(list.split(|b| *b == 0).filter(|name| is_stored(name)).map(Box::from).collect())
            }
            _ => Ok(Vec::new()),
        }
    }

    pub(super) fn put_xattr(&self, name: &[u8], value: Option<&[u8]>, flags: u32) -> Result<()> {
        check_name(name)?;
        let exists = match self.get_xattr(name) {
            Ok(_) => true,
            Err(Errno::ENODATA) => false,
            Err(error) => return Err(error),
        };
        if exists && flags & XATTR_CREATE != 0 {
            return Err(Errno::EEXIST);
        }
        if !exists && (flags & XATTR_REPLACE != 0 || value.is_none()) {
            return Err(Errno::ENODATA);
        }
        self.copy_xattrs()?;
        let mut xattrs = self.xattrs.borrow_mut();
        let xattrs = xattrs.get_or_insert_default();
        if let Some(value) = value {
            self.tree.charge_metadata((name.len() + value.len()) as u64 + ATTRIBUTE_BYTES)?;
            if let Some(old) = xattrs.0.insert(name.into(), value.into()) {
                self.tree.release_metadata((name.len() + old.len()) as u64 + ATTRIBUTE_BYTES);
            }
        } else if let Some(old) = xattrs.0.remove(name) {
            self.tree.release_metadata((name.len() + old.len()) as u64 + ATTRIBUTE_BYTES);
        }
        self.change(|_, _| {});
        Ok(())
    }

    /// Makes the image's attributes this node's own.
    fn copy_xattrs(&self) -> Result<()> {
        if self.xattrs.borrow().is_some() {
            return Ok(());
        }
        let mut copy = Xattrs::default();
        for name in self.xattr_names()? {
            let value = self.get_xattr(&name)?;
            copy.0.insert(name, value.into());
        }
        self.tree.charge_metadata(copy.charged_bytes())?;
        *self.xattrs.borrow_mut() = Some(Box::new(copy));
        Ok(())
    }
}
