//! Waking instances: one request to torpord, however many clients wait for it.

use crate::control::AskError;
use crate::control::messages::{Wake, Woken};
use crate::host::Host;
use crate::instance::{Busy, Kind};
use crate::limits::{WAITING_MAX, WAITING_PER_HOST_MAX, WAKE_TIME};
use crate::proxy::Proxy;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::sync::Notify;
use uuid::Uuid;

/// Between two requests while torpord is busy: the first pause, doubled each time, and the longest.
const BUSY_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_millis(500));
/// The same while a group is at its limits.
const SLOT_PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_millis(50));

/// What is to be woken.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Target {
    /// Whoever has this name.
    Host(Host, u16),
    /// An instance that is known.
    Instance(Uuid),
}

/// Why nothing was woken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// Nobody has the name, or offers the port.
    Unknown,
    /// It may not be woken.
    Stopped(String),
    /// For too long, or too many wait.
    Busy(&'static str),
    /// It could not be woken.
    Failed(String),
}

/// A request to torpord that is under way.
struct Call {
    waiters: Cell<usize>,
    result: RefCell<Option<Result<Woken, Failure>>>,
    done: Notify,
    /// Keeps what was woken awake until all who waited have had their turn.
    hold: RefCell<Option<Busy>>,
}

/// Whom, and whom not.
type Key = (Target, Vec<Uuid>);

/// See the module's text.
#[derive(Default)]
pub struct Wakes {
    calls: RefCell<HashMap<Key, Rc<Call>>>,
    waiting: Cell<usize>,
    /// The same by what they wait for.
    waiting_for: RefCell<HashMap<Target, usize>>,
    asked: Cell<u64>,
}

/// One who waits; counted as long as it exists.
struct Waiter<'a> {
    wakes: &'a Wakes,
    target: Target,
    /// The request to torpord, where it waits for that.
    call: Option<Rc<Call>>,
}

impl<'a> Waiter<'a> {
    fn new(wakes: &'a Wakes, target: Target, call: Option<Rc<Call>>) -> Self {
        wakes.waiting.set(wakes.waiting.get() + 1);
        *wakes.waiting_for.borrow_mut().entry(target.clone()).or_default() += 1;
        if let Some(call) = &call {
            call.waiters.set(call.waiters.get() + 1);
        }
        Self { wakes, target, call }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.wakes.waiting.set(self.wakes.waiting.get() - 1);
        if let Some(call) = &self.call {
            call.waiters.set(call.waiters.get() - 1);
        }
        let mut waiting_for = self.wakes.waiting_for.borrow_mut();
        if let Some(count) = waiting_for.get_mut(&self.target) {
            *count -= 1;
            if *count == 0 {
                waiting_for.remove(&self.target);
            }
        }
    }
}

impl Wakes {
    /// Requests that wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.get()
    }

    /// What they wait for, and how many for each, in an order that lasts.
    #[must_use]
    pub fn waited_for(&self) -> Vec<(Target, usize)> {
        let mut all: Vec<_> =
            self.waiting_for.borrow().iter().map(|(target, count)| (target.clone(), *count)).collect();
        all.sort_unstable();
        all
    }

    /// Wakes that torpord was asked for.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.asked.get()
    }

    /// Wakes `target`, but none of `not`; joins who waits for the same.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn wake(&self, proxy: &Rc<Proxy>, target: Target, not: &[Uuid]) -> Result<Woken, Failure> {
        let key = (target.clone(), not.to_vec());
        let known = self.calls.borrow().get(&key).cloned();
        let full = match &known {
            Some(call) => call.waiters.get() >= WAITING_PER_HOST_MAX,
            // One goes on when nobody waits for it any more.
            None => self.calls.borrow().len() >= WAITING_MAX,
        };
        if full || self.waiting.get() >= WAITING_MAX {
            return Err(Failure::Busy("too many requests wait for it"));
        }
        let call = known.unwrap_or_else(|| {
            let call = Rc::new(Call {
                waiters: Cell::new(0),
                result: RefCell::default(),
                done: Notify::new(),
                hold: RefCell::default(),
            });
            self.calls.borrow_mut().insert(key.clone(), call.clone());
            tokio::task::spawn_local(run(proxy.clone(), key, call.clone()));
            call
        });
        let _waits = Waiter::new(self, target, Some(call.clone()));
        loop {
            let done = call.done.notified();
            if let Some(result) = &*call.result.borrow() {
                return result.clone();
            }
            done.await;
        }
    }
}

impl Wakes {
    /// Waits until an instance of a group at its limits can take a request; false where it takes too long, or too many
    /// wait already.
    pub async fn slot(&self, proxy: &Proxy, host: &Host, port: u16, until: Instant) -> bool {
        let target = Target::Host(host.clone(), port);
        let of_host = self.waiting_for.borrow().get(&target).copied().unwrap_or_default();
        if of_host >= WAITING_PER_HOST_MAX || self.waiting.get() >= WAITING_MAX {
            return false;
        }
        let _waits = Waiter::new(self, target, None);
        let mut pause = SLOT_PAUSE.0;
        while !proxy.has_slot(host, port) {
            if Instant::now() >= until {
                return false;
            }
            tokio::time::sleep(pause).await;
            pause = SLOT_PAUSE.1.min(2 * pause);
        }
        true
    }
}

async fn run(proxy: Rc<Proxy>, key: Key, call: Rc<Call>) {
    let ask = ask(&proxy, &key.0, &key.1);
    let result = tokio::time::timeout(WAKE_TIME, ask).await;
    let result = result.unwrap_or(Err(Failure::Busy("it could not be woken in time")));
    if let (Err(Failure::Unknown), Target::Host(host, port)) = (&result, &key.0) {
        proxy.routes.borrow_mut().miss(host, *port);
    }
    proxy.wakes.calls.borrow_mut().remove(&key);
    if let Ok(woken) = &result {
        let instance = proxy.routes.borrow().instance(woken.instance).cloned();
        if let Some(instance) = instance.filter(|instance| instance.which().generation == woken.generation) {
            // Taken back, whichever of both answers is read first.
            instance.go_on();
            call.hold.replace(Some(instance.busy(Kind::Waiter)));
        }
    }
    call.result.replace(Some(result));
    call.done.notify_waiters();
}

async fn ask(proxy: &Rc<Proxy>, target: &Target, not: &[Uuid]) -> Result<Woken, Failure> {
    let (host, port, instance) = match target {
        Target::Host(host, port) => (Some(host.to_string()), Some(*port), None),
        Target::Instance(instance) => (None, None, Some(*instance)),
    };
    let wake = Wake { host, port, instance, not: not.to_vec() };
    let mut pause = BUSY_PAUSE.0;
    loop {
        proxy.control.present().await;
        proxy.wakes.asked.set(proxy.wakes.asked.get() + 1);
        let asked_at = Instant::now();
        match proxy.control.ask::<Woken>("wake", &wake).await {
            Ok(woken) => {
                proxy.telemetry.wakes.borrow_mut().add(asked_at.elapsed());
                return Ok(woken);
            }
            Err(AskError::Lost) => {}
            Err(AskError::Refused(refusal)) => match &refusal.code[..] {
                "unknown" => return Err(Failure::Unknown),
                "stopped" => return Err(Failure::Stopped(refusal.message)),
                "busy" => {
                    tokio::time::sleep(pause).await;
                    pause = BUSY_PAUSE.1.min(2 * pause);
                }
                _ => return Err(Failure::Failed(refusal.message)),
            },
        }
    }
}
