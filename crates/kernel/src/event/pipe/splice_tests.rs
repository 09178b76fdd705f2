use super::splice::{self, Place};
use super::tests::{read, write};
use super::*;
use crate::event::eventfd::eventfd;
use std::vec::Vec;

fn pair() -> (Rc<OpenFile>, Rc<OpenFile>) {
    pipe(OpenFlags::NONBLOCK)
}

fn end(file: &OpenFile) -> &PipeEnd {
    PipeEnd::of(file).expect("a pipe")
}

#[test]
fn between_pipes_moves_and_tee_copies() {
    let _thread = crate::task::testing::enter();
    let ((r1, w1), (r2, w2)) = (pair(), pair());
    assert_eq!(splice::between_pipes(end(&r1), end(&w2), 5, true), Err(Errno::EAGAIN));
    assert_eq!(splice::between_pipes(end(&r1), end(&w1), 5, true), Err(Errno::EINVAL));
    assert_eq!(write(&w1, b"hello world"), Ok(11));
    assert_eq!(splice::tee(end(&r1), end(&w2), 5, true), Ok(5));
    assert_eq!(splice::between_pipes(end(&r1), end(&w2), 7, true), Ok(7));
    assert_eq!(write(&w2, b"!"), Ok(1));
    assert_eq!(read(&r2, 99).as_deref(), Ok(&b"hellohello w!"[..]));
    assert_eq!(read(&r1, 99).as_deref(), Ok(&b"orld"[..]));
    drop(w1);
    assert_eq!(splice::tee(end(&r1), end(&w2), 5, false), Ok(0), "end of file");
    assert_eq!(splice::between_pipes(end(&r1), end(&w2), 5, false), Ok(0));
    drop(r2);
    let (r3, w3) = pair();
    write(&w3, b"x").expect("writes");
    assert_eq!(splice::tee(end(&r3), end(&w2), 1, false), Err(Errno::EPIPE));
}

#[test]
fn a_full_target_takes_no_more() {
    let _thread = crate::task::testing::enter();
    let ((r1, w1), (r2, w2)) = (pair(), pair());
    r2.ops.fcntl(&r2, F_SETPIPE_SZ, 8192).expect("shrinks");
    write(&w1, &[1; 20000]).expect("writes");
    assert_eq!(splice::between_pipes(end(&r1), end(&w2), 20000, true), Ok(8192));
    assert_eq!(splice::between_pipes(end(&r1), end(&w2), 20000, true), Err(Errno::EAGAIN));
    assert_eq!(read(&r1, 20000).map(|v| v.len()), Ok(20000 - 8192));
}

/// A file in memory that takes at most `limit` bytes at a time.
struct Memory {
    data: RefCell<Vec<u8>>,
    limit: usize,
}

impl FileOps for Memory {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn read(&self, _: &OpenFile, dst: &mut Dest<'_>, offset: u64) -> Result<usize> {
        let data = self.data.borrow();
        dst.put(data.get(offset as usize..).unwrap_or_default())
    }
    fn write(&self, _: &OpenFile, src: &mut Source<'_>, offset: u64) -> Result<(usize, u64)> {
        let mut bytes = std::vec![0; src.remaining().min(self.limit)];
        let n = src.take(&mut bytes)?;
        let mut data = self.data.borrow_mut();
        let end = offset as usize + n;
        if data.len() < end {
            data.resize(end, 0);
        }
        data[offset as usize..end].copy_from_slice(&bytes);
        Ok((n, end as u64))
    }
    fn seekable(&self) -> bool {
        true
    }
    fn metadata(&self) -> Metadata {
        Metadata { file_type: FileType::Regular, ..anon::metadata() }
    }
    fn describe(&self) -> String {
        String::new()
    }
}

fn memory(data: &[u8], limit: usize) -> Rc<OpenFile> {
    OpenFile::anonymous(Rc::new(Memory { data: RefCell::new(data.to_vec()), limit }), OpenFlags::RDWR)
}

fn content(file: &OpenFile) -> Vec<u8> {
    file.ops.as_any().downcast_ref::<Memory>().expect("memory").data.borrow().clone()
}

#[test]
fn files_and_pipes() {
    let _thread = crate::task::testing::enter();
    let data: Vec<u8> = (0..10_000u32).map(|n| n as u8).collect();
    let file = memory(&data, usize::MAX);
    let (r, w) = pair();
    let mut place = Place { file: &file, offset: None };
    assert_eq!(splice::from_file(&mut place, end(&w), 5000, true), Ok(5000));
    assert_eq!(file.position.get(), 5000);
    let mut place = Place { file: &file, offset: Some(9000) };
    assert_eq!(splice::from_file(&mut place, end(&w), 5000, true), Ok(1000));
    assert_eq!((place.offset, file.position.get()), (Some(10_000), 5000));
    assert_eq!(splice::from_file(&mut place, end(&w), 5000, true), Ok(0));
    let copy = memory(&[], 4000);
    let mut place = Place { file: &copy, offset: None };
    assert_eq!(splice::to_file(end(&r), &mut place, 6000, true), Ok(4000), "a short write ends it");
    assert_eq!(splice::to_file(end(&r), &mut place, 6000, true), Ok(2000));
    assert_eq!(splice::to_file(end(&r), &mut place, 6000, true), Err(Errno::EAGAIN));
    assert_eq!(content(&copy), [&data[..5000], &data[9000..]].concat());
    assert_eq!(copy.position.get(), 6000);
    let counter = eventfd(1, false, OpenFlags::empty());
    assert_eq!(splice::from_file(&mut Place { file: &counter, offset: None }, end(&w), 8, true), Err(Errno::EINVAL));
}

#[test]
fn what_was_not_written_was_not_taken() {
    let _thread = crate::task::testing::enter();
    let data: Vec<u8> = (0..200_000u32).map(|n| n as u8).collect();
    let (from, to) = (memory(&data, 0), memory(&[], 50_000));
    let (mut source, mut target) = (Place { file: &from, offset: None }, Place { file: &to, offset: Some(3) });
    assert_eq!(splice::copy(&mut source, &mut target, 150_000), Ok(50_000));
    assert_eq!((from.position.get(), target.offset), (50_000, Some(50_003)));
    assert_eq!(splice::copy(&mut source, &mut target, 40_000), Ok(40_000));
    assert_eq!(content(&to)[3..], data[..90_000]);
}
