use super::*;
use crate::event::eventfd::eventfd;
use crate::event::pipe::pipe;
use proptest::prelude::*;
use std::vec::Vec;

/// An object whose readiness the test sets.
struct Object {
    state: Cell<Events>,
    queue: Rc<WaitQueue>,
}

impl FileOps for Object {
    fn as_any(&self) -> &dyn Any {
        self
    }
    fn poll(&self, _: &OpenFile) -> Events {
        self.state.get()
    }
    fn wait_queue(&self) -> Option<Rc<WaitQueue>> {
        Some(Rc::clone(&self.queue))
    }
    fn metadata(&self) -> Metadata {
        anon::metadata()
    }
    fn describe(&self) -> String {
        String::from("test")
    }
}

fn object() -> (Rc<Object>, Rc<OpenFile>) {
    let object = Rc::new(Object { state: Cell::new(Events::empty()), queue: WaitQueue::new() });
    (object.clone(), OpenFile::anonymous(object, OpenFlags::RDWR))
}

fn now(epoll: &OpenFile, max: usize) -> Vec<Report> {
    let mut out = Vec::new();
    let epoll = Epoll::of(epoll).expect("an epoll instance");
    let n = epoll
        .wait(max, Some(crate::time::now()), |index, report| {
            assert_eq!(index, out.len());
            out.push(report);
            Ok(())
        })
        .expect("no error");
    assert_eq!(n, out.len());
    out
}

fn interest(events: Events, mode: Mode, data: u64) -> Interest {
    Interest { events, mode, data }
}

#[test]
fn errors() {
    let _thread = crate::task::testing::enter();
    let file = epoll();
    let epoll = Epoll::of(&file).expect("epoll");
    let (_, target) = object();
    let level = interest(Events::IN, Mode::empty(), 1);
    assert_eq!(epoll.modify(5, &target, level), Err(Errno::ENOENT));
    assert_eq!(epoll.delete(5, &target), Err(Errno::ENOENT));
    assert_eq!(epoll.add(3, &file, level), Err(Errno::EINVAL));
    assert_eq!(epoll.add(5, &target, level), Ok(()));
    assert_eq!(epoll.add(5, &target, level), Err(Errno::EEXIST));
    assert_eq!(epoll.add(6, &target, level), Ok(()), "a duplicate descriptor is another item");
    assert_eq!(epoll.modify(5, &target, interest(Events::IN, Mode::EXCLUSIVE, 0)), Err(Errno::EINVAL));
    assert_eq!(epoll.add(7, &target, interest(Events::IN, Mode::EXCLUSIVE, 0)), Ok(()));
    assert_eq!(epoll.modify(7, &target, level), Err(Errno::EINVAL));
    assert_eq!(epoll.add(8, &target, interest(Events::PRI, Mode::EXCLUSIVE, 0)), Err(Errno::EINVAL));
    let other = super::epoll();
    assert_eq!(epoll.add(9, &other, interest(Events::IN, Mode::EXCLUSIVE, 0)), Err(Errno::EINVAL));
    assert_eq!(Epoll::of(&target).err(), Some(Errno::EINVAL));
}

#[test]
fn nothing_is_left_when_a_file_or_an_instance_goes() {
    let _thread = crate::task::testing::enter();
    let (target, file) = object();
    let ep = epoll();
    Epoll::of(&ep).expect("epoll").add(5, &file, interest(Events::IN, Mode::empty(), 1)).expect("adds");
    target.state.set(Events::READABLE);
    target.queue.wake(Events::READABLE);
    let duplicate = Rc::clone(&file);
    drop(file);
    assert_eq!(now(&ep, 9).len(), 1, "the description is still open");
    drop(duplicate);
    assert_eq!(now(&ep, 9).len(), 0);
    assert!(target.queue.is_empty());
    assert_eq!(ITEMS.with(Cell::get), 0);

    let (target, file) = object();
    Epoll::of(&ep).expect("epoll").add(5, &file, interest(Events::IN, Mode::empty(), 1)).expect("adds");
    drop(ep);
    assert!(target.queue.is_empty());
    assert!(file.attachments.borrow().is_empty());
    assert_eq!(ITEMS.with(Cell::get), 0);
}

#[test]
fn level_triggered_files_take_turns() {
    let _thread = crate::task::testing::enter();
    let ep = epoll();
    let objects: Vec<_> = (0..3).map(|_| object()).collect();
    for (i, (object, file)) in objects.iter().enumerate() {
        object.state.set(Events::READABLE);
        let interest = interest(Events::IN, Mode::empty(), i as u64);
        Epoll::of(&ep).expect("epoll").add(i as i32, file, interest).expect("adds");
    }
    let order: Vec<u64> = (0..6).map(|_| now(&ep, 1)[0].data).collect();
    assert_eq!(order, [0, 1, 2, 0, 1, 2]);
    let order: Vec<Vec<u64>> = (0..3).map(|_| now(&ep, 2).iter().map(|r| r.data).collect()).collect();
    assert_eq!(order, [[0, 1], [2, 0], [1, 2]]);
}

#[test]
fn what_the_program_can_not_take_stays() {
    let _thread = crate::task::testing::enter();
    let ep = epoll();
    let (object, file) = object();
    object.state.set(Events::READABLE);
    let inner = Epoll::of(&ep).expect("epoll");
    inner.add(4, &file, interest(Events::IN, Mode::EDGE | Mode::ONESHOT, 4)).expect("adds");
    assert_eq!(inner.wait(1, None, |_, _| Err(Errno::EFAULT)), Err(Errno::EFAULT));
    assert_eq!(now(&ep, 1).len(), 1);
    assert_eq!(now(&ep, 1).len(), 0);
}

#[test]
fn exclusive_waiters_share_wake_ups() {
    let _thread = crate::task::testing::enter();
    let (object, file) = object();
    let instances: Vec<_> = (0..3).map(|_| epoll()).collect();
    for ep in &instances {
        let exclusive = interest(Events::IN, Mode::EXCLUSIVE | Mode::EDGE, 0);
        Epoll::of(ep).expect("epoll").add(4, &file, exclusive).expect("adds");
    }
    object.state.set(Events::READABLE);
    // Nobody waits, so nobody makes use of it and all get it.
    object.queue.wake(Events::READABLE);
    assert_eq!(instances.iter().map(|ep| now(ep, 1).len()).sum::<usize>(), 3);
    // Somebody waits in the second one.
    struct Waiter;
    impl Wake for Waiter {
        fn wake(&self, _: Events) -> bool {
            true
        }
    }
    let _registration = Epoll::of(&instances[1]).expect("epoll").waiters.register(Rc::new(Waiter), true);
    object.queue.wake(Events::READABLE);
    assert_eq!(instances.iter().map(|ep| now(ep, 1).len()).collect::<Vec<_>>(), [1, 1, 0]);
}

#[test]
fn nesting() {
    let _thread = crate::task::testing::enter();
    let level = interest(Events::IN, Mode::empty(), 7);
    let chain: Vec<_> = (0..7).map(|_| epoll()).collect();
    // chain[0] watches chain[1] watches ...: five levels are the most.
    let add = |i: usize, j: usize| Epoll::of(&chain[i]).expect("epoll").add(9, &chain[j], level);
    for i in 0..4 {
        assert_eq!(add(i, i + 1), Ok(()), "{i}");
    }
    assert_eq!(add(4, 5), Err(Errno::ELOOP), "too deep");
    assert_eq!(add(5, 0), Err(Errno::ELOOP), "too deep from above");
    assert_eq!(add(3, 0), Err(Errno::ELOOP), "a cycle");
    // An event travels up through all of them.
    let counter = eventfd(0, false, OpenFlags::NONBLOCK);
    Epoll::of(&chain[4]).expect("epoll").add(3, &counter, level).expect("adds");
    assert_eq!(chain[0].poll(), Events::empty());
    counter.write(&mut crate::mm::user::Source::kernel(&1u64.to_ne_bytes())).expect("writes");
    assert_eq!(chain[0].poll(), Events::READABLE);
    assert_eq!(now(&chain[0], 9).len(), 1);
    assert_eq!(now(&chain[4], 9).len(), 1);
    counter.read(&mut crate::mm::user::Dest::kernel(&mut [0; 8])).expect("reads");
    assert_eq!(now(&chain[0], 9).len(), 0);
    assert_eq!(now(&chain[4], 9).len(), 0);
}

#[test]
fn too_many_paths() {
    let _thread = crate::task::testing::enter();
    let level = interest(Events::IN, Mode::empty(), 7);
    let (_, file) = object();
    let middle = epoll();
    let inner = Epoll::of(&middle).expect("epoll");
    inner.add(4, &file, level).expect("adds");
    let tops: Vec<_> = (0..501).map(|_| epoll()).collect();
    for (i, top) in tops.iter().enumerate() {
        let expected = if i < 500 { Ok(()) } else { Err(Errno::EINVAL) };
        assert_eq!(Epoll::of(top).expect("epoll").add(5, &middle, level), expected, "{i}");
    }
}

#[test]
fn an_edge_for_every_write_to_a_pipe() {
    let _thread = crate::task::testing::enter();
    let (r, w) = pipe(OpenFlags::NONBLOCK);
    let ep = epoll();
    Epoll::of(&ep).expect("epoll").add(3, &r, interest(Events::IN, Mode::EDGE, 1)).expect("adds");
    for _ in 0..3 {
        w.write(&mut crate::mm::user::Source::kernel(b"x")).expect("writes");
        assert_eq!(now(&ep, 9).len(), 1);
        assert_eq!(now(&ep, 9).len(), 0);
    }
    drop(w);
    assert_eq!(now(&ep, 9)[0].events, Events::IN | Events::HUP);
}

const OBJECTS: usize = 4;

#[derive(Clone, Debug)]
enum Op {
    Add(usize, u32, u32),
    Modify(usize, u32, u32),
    Delete(usize),
    Set(usize, u32),
    Wait(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let bits = prop_oneof![Just(0), Just(1), Just(4), Just(5), Just(0x2005)];
    let mode = prop_oneof![Just(0), Just(1 << 31), Just(1 << 30), Just(3 << 30)];
    let object = 0..OBJECTS;
    prop_oneof![
        (object.clone(), bits.clone(), mode.clone()).prop_map(|(o, b, m)| Op::Add(o, b, m)),
        (object.clone(), bits.clone(), mode).prop_map(|(o, b, m)| Op::Modify(o, b, m)),
        object.clone().prop_map(Op::Delete),
        (object.clone(), prop_oneof![bits.clone(), Just(0x11), Just(8)]).prop_map(|(o, b)| Op::Set(o, b)),
        (object, bits).prop_map(|(o, b)| Op::Set(o, b)),
        (1..=OBJECTS + 1).prop_map(Op::Wait),
        (1..=OBJECTS + 1).prop_map(Op::Wait),
    ]
}

/// What epoll(7) says of one registration.
#[derive(Clone, Copy)]
struct Model {
    interest: Events,
    mode: Mode,
    /// Something happened (or might have been there) since it was last looked at: an edge.
    edge: bool,
    disabled: bool,
}

impl Model {
    fn reports(&self, state: Events) -> Events {
        let level = !self.mode.contains(Mode::EDGE);
        if self.disabled || !(level || self.edge) { Events::empty() } else { state & self.interest }
    }
}

proptest! {
    #[test]
    fn follows_the_specification(ops in proptest::collection::vec(op(), 1..80)) {
        let _thread = crate::task::testing::enter();
        let ep = epoll();
        let epoll = Epoll::of(&ep).expect("epoll");
        let objects: Vec<_> = (0..OBJECTS).map(|_| object()).collect();
        let mut models: [Option<Model>; OBJECTS] = [None; OBJECTS];
        for op in ops {
            match op {
                Op::Add(o, bits, mode) | Op::Modify(o, bits, mode) => {
                    let wanted = Interest::new(bits | mode, o as u64);
                    let add = matches!(op, Op::Add(..));
                    let (result, expected) = if add {
                        let expected = if models[o].is_some() { Err(Errno::EEXIST) } else { Ok(()) };
                        (epoll.add(o as i32, &objects[o].1, wanted), expected)
                    } else {
                        let expected = if models[o].is_some() { Ok(()) } else { Err(Errno::ENOENT) };
                        (epoll.modify(o as i32, &objects[o].1, wanted), expected)
                    };
                    prop_assert_eq!(result, expected);
                    if result.is_ok() {
                        let interest = wanted.events | Events::ERR | Events::HUP;
                        // A modification that finds nothing takes no earlier event back.
                        let earlier = models[o].is_some_and(|m| m.edge);
                        let edge = earlier || !(objects[o].0.state.get() & interest).is_empty();
                        models[o] = Some(Model { interest, mode: wanted.mode, edge, disabled: false });
                    }
                }
                Op::Delete(o) => {
                    let result = epoll.delete(o as i32, &objects[o].1);
                    prop_assert_eq!(result.is_ok(), models[o].take().is_some());
                }
                Op::Set(o, bits) => {
                    let state = Events::from_bits_truncate(bits);
                    objects[o].0.state.set(state);
                    objects[o].0.queue.wake(state);
                    if let Some(model) = &mut models[o]
                        && !model.disabled
                        && (state.is_empty() || state.intersects(model.interest))
                    {
                        model.edge = true;
                    }
                }
                Op::Wait(max) => {
                    let state = |o: usize| objects[o].0.state.get();
                    let expected: Vec<(usize, Events)> = (0..OBJECTS)
                        .filter_map(|o| Some((o, models[o]?.reports(state(o)))))
                        .filter(|(_, events)| !events.is_empty())
                        .collect();
                    prop_assert_eq!(ep.poll().contains(Events::IN), !expected.is_empty());
                    let got = now(&ep, max);
                    prop_assert_eq!(got.len(), expected.len().min(max));
                    for report in &got {
                        let o = report.data as usize;
                        prop_assert!(expected.contains(&(o, report.events)));
                        let model = models[o].as_mut().expect("registered");
                        model.edge = false;
                        model.disabled = model.mode.contains(Mode::ONESHOT);
                    }
                }
            }
        }
    }
}
