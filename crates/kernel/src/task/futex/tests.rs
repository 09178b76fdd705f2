use super::*;
use crate::task::testing;
use crate::time::clocks::WallClock;
use crate::time::timer::Timer;
use crate::time::{Instant, set_now};

fn addr(word: &u32) -> UserAddr {
    UserAddr(core::ptr::from_ref(word) as u64)
}

/// A place in the queue of a word.
fn sleeper(word: &u32, bits: u32) -> Rc<Waiter> {
    let waiter = Waiter::new(&current(), Key::new(addr(word), Scope::Private).expect("aligned"), bits);
    TABLE.with(|table| table.borrow_mut().enter(&waiter));
    waiter
}

fn woken(waiters: &[Rc<Waiter>]) -> Vec<bool> {
    waiters.iter().map(|waiter| waiter.woken.get()).collect()
}

#[test]
fn wakes_in_order_by_count_and_bits() {
    let _me = testing::enter();
    let word = 0u32;
    let waiters: Vec<_> = [1, 2, 3, MATCH_ANY].into_iter().map(|bits| sleeper(&word, bits)).collect();
    let at = addr(&word);
    assert_eq!(wake(at, Scope::Private, 5, 0), Err(Errno::EINVAL));
    assert_eq!(wake(at, Scope::Private, 1, 2), Ok(1));
    assert_eq!(woken(&waiters), [false, true, false, false]);
    assert_eq!(wake(at, Scope::Private, 0, MATCH_ANY), Ok(1), "at least one");
    assert_eq!(wake(at, Scope::Private, i32::MAX, MATCH_ANY), Ok(2));
    assert!(TABLE.with(|table| table.borrow().0.is_empty()));
    assert_eq!(wake(at.offset(2), Scope::Private, 1, 1), Err(Errno::EINVAL));
}

#[test]
fn requeues_those_who_are_not_woken() {
    let _me = testing::enter();
    let (from, to) = (5u32, 0u32);
    let waiters: Vec<_> = (0..5).map(|_| sleeper(&from, MATCH_ANY)).collect();
    assert_eq!(requeue(addr(&from), addr(&to), Scope::Private, (1, 2), Some(6)), Err(Errno::EAGAIN));
    assert_eq!(requeue(addr(&from), addr(&to), Scope::Private, (-1, 2), None), Err(Errno::EINVAL));
    assert_eq!(requeue(addr(&from), addr(&to), Scope::Private, (1, 2), Some(5)), Ok(3));
    assert_eq!(woken(&waiters), [true, false, false, false, false]);
    assert_eq!(wake(addr(&to), Scope::Private, 9, MATCH_ANY), Ok(2));
    assert_eq!(woken(&waiters), [true, true, true, false, false]);
    assert_eq!(wake(addr(&from), Scope::Private, 9, MATCH_ANY), Ok(2));
}

#[test]
fn wake_op_changes_compares_and_wakes() {
    let _me = testing::enter();
    let (first, mut second) = (0u32, 10u32);
    let (a, b) = (sleeper(&first, MATCH_ANY), sleeper(&second, MATCH_ANY));
    let second_at = UserAddr((&raw mut second) as u64);
    let encode = |op: u32, operand: u32, cmp: u32, against: u32| op << 28 | cmp << 24 | operand << 12 | against;
    // Add -1; wake the second if the old value was less than 10: it was not.
    let op = WakeOp::new(encode(1, 0xfff, 2, 10)).expect("valid");
    assert_eq!(wake_op(addr(&first), second_at, Scope::Private, (1, 1), op), Ok(1));
    assert_eq!((user::load_u32(second_at), a.woken.get(), b.woken.get()), (Ok(9), true, false));
    // Or with 1 << 4; equal to 9.
    let op = WakeOp::new(encode(8 | 2, 4, 0, 9)).expect("valid");
    assert_eq!(wake_op(addr(&first), second_at, Scope::Private, (1, 1), op), Ok(1));
    assert_eq!((user::load_u32(second_at), b.woken.get()), (Ok(25), true));
    assert_eq!(WakeOp::new(encode(5, 0, 0, 0)), Err(Errno::ENOSYS));
}

#[test]
fn waits_for_a_value_a_time_or_a_wake() {
    let _me = testing::enter();
    set_now(Instant(1_000));
    let word = 7u32;
    let at = addr(&word);
    assert_eq!(wait(at, Scope::Private, 8, None, MATCH_ANY), Err(Errno::EAGAIN));
    assert_eq!(wait(at.offset(1), Scope::Private, 7, None, MATCH_ANY), Err(Errno::EINVAL));
    let deadline = Deadline::at(WallClock::Monotonic, 2_000);
    assert_eq!(wait(at, Scope::Private, 7, Some(deadline), MATCH_ANY), Err(Errno::ETIMEDOUT));
    assert!(TABLE.with(|table| table.borrow().0.is_empty()));
    let timer = Timer::new();
    timer.arm(Instant(3_000), Rc::new(move || assert_eq!(wake(at, Scope::Private, 1, MATCH_ANY), Ok(1))));
    let later = Deadline::at(WallClock::Monotonic, 4_000);
    assert_eq!(wait(at, Scope::Private, 7, Some(later), MATCH_ANY), Ok(()));
    assert_eq!(crate::time::now(), Instant(3_000));
    let other = 1u32;
    let words =
        [(&other, 1), (&word, 7)].map(|(word, expected)| WaitFor { addr: addr(word), scope: Scope::Private, expected });
    timer.arm(Instant(5_000), Rc::new(move || assert_eq!(wake(at, Scope::Private, 1, MATCH_ANY), Ok(1))));
    assert_eq!(wait_any(&words, None, MATCH_ANY), Ok(1));
    assert!(TABLE.with(|table| table.borrow().0.is_empty()));
}

#[test]
fn locks_are_taken_refused_and_handed_over() {
    use linux_raw_sys::general::{FUTEX_OWNER_DIED, FUTEX_WAITERS};
    let me = testing::enter();
    let mut word = 0u32;
    let at = UserAddr((&raw mut word) as u64);
    assert_eq!(lock_pi(at, Scope::Private, None), Ok(()));
    assert_eq!(user::load_u32(at), Ok(me.tid()));
    assert_eq!(lock_pi(at, Scope::Private, None), Err(Errno::EDEADLK));
    assert_eq!(unlock_pi(at, Scope::Private), Ok(()));
    assert_eq!(user::load_u32(at), Ok(0));
    assert_eq!(unlock_pi(at, Scope::Private), Err(Errno::EPERM));
    user::write(at, &(FUTEX_WAITERS | 12345)).expect("mapped");
    assert_eq!(trylock_pi(at, Scope::Private), Err(Errno::EAGAIN));
    assert_eq!(lock_pi(at, Scope::Private, None), Err(Errno::ESRCH), "nobody has that id");
    user::write(at, &FUTEX_OWNER_DIED).expect("mapped");
    assert_eq!(trylock_pi(at, Scope::Private), Ok(()));
    assert_eq!(user::load_u32(at), Ok(FUTEX_OWNER_DIED | me.tid()));
}

#[test]
fn the_locks_of_a_thread_that_ends_are_marked() {
    use linux_raw_sys::general::{FUTEX_OWNER_DIED, FUTEX_WAITERS};
    let me = testing::enter();
    #[repr(C)]
    struct Lock {
        next: u64,
        word: u32,
    }
    #[repr(C)]
    struct Head {
        first: u64,
        offset: u64,
        pending: u64,
    }
    let mut head = Head { first: 0, offset: 8, pending: 0 };
    let mut locks = [me.tid() | FUTEX_WAITERS, 4711, me.tid()].map(|word| Lock { next: 0, word });
    let at: Vec<u64> = locks.iter().map(|lock| core::ptr::from_ref(lock) as u64).collect();
    locks[0].next = at[1];
    locks[1].next = &raw const head as u64;
    head.first = at[0];
    head.pending = at[2];
    let waiter = sleeper(&locks[0].word, MATCH_ANY);
    me.robust_list.set(UserAddr(&raw const head as u64));
    thread_exits();
    let words: Vec<u32> = at.iter().map(|at| user::load_u32(UserAddr(at + 8)).expect("mapped")).collect();
    assert_eq!(words, [FUTEX_OWNER_DIED | FUTEX_WAITERS, 4711, FUTEX_OWNER_DIED]);
    assert!(waiter.woken.get());
    assert!(me.robust_list.get().is_null());
    // A list that goes in circles ends.
    user::write(UserAddr(at[1]), &at[0]).expect("mapped");
    me.robust_list.set(UserAddr(&raw const head as u64));
    thread_exits();
}
