//! An instance that runs, or sleeps with connections open: its link, what is in flight on it, and when it may sleep.

use crate::control::AskError;
use crate::control::messages::{self, Attach, Known, LinkLost, ScaleToZero, Sleep, Slept, Usage, Which};
use crate::http::upstream::Pool;
use crate::limits::{IDLE_AGAIN, PARKED_MAX, UNUSED_TIME};
use crate::link::{Link, Owner};
use crate::proxy::Proxy;
use crate::say;
use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Notify;
use torpor_streams::ledger::Violation;
use torpor_streams::policy::{Policy, Scope};
use uuid::Uuid;

/// Where a guest listens (vsock) that wants to hear before it sleeps, and what it hears there.
const NOTICE_PORT: u32 = 138;
const NOTICE: &[u8] = b"scaletozero";

/// Where an instance is between running and sleeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Requests may be sent to it.
    Running,
    /// torpord stops or parks it: no new requests, those in flight may end.
    Draining,
    /// Nothing is sent: `idle` was asked, or torpord has parked it.
    Quiet,
    /// It has no VM; its connections are kept.
    Asleep,
    /// It is over.
    Gone,
}

/// What an instance is waiting for while it is silent.
#[derive(Clone, Copy)]
enum Step {
    /// To be told that it is to sleep at that moment.
    Notify(Instant),
    Sleep,
}

/// What holds an instance awake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A request, from its first byte to the guest to the last one of the answer.
    Request,
    /// A connection that a client has open through to the guest.
    Connection,
    /// Someone who has waited for it to wake and has not had a turn yet.
    Waiter,
}

/// See the module's text.
pub struct Instance {
    /// Its name in the API.
    pub id: Uuid,
    /// Its link.
    pub link: Rc<Link>,
    /// Idle connections of HTTP to it.
    pub pool: Pool,
    settings: RefCell<Attach>,
    proxy: Weak<Proxy>,
    phase: Cell<Phase>,
    requests: Cell<usize>,
    connections: Cell<usize>,
    waiters: Cell<usize>,
    /// Someone had a turn since it was attached.
    used: Cell<bool>,
    served: Cell<u64>,
    /// Since when nothing is in flight.
    quiet_since: Cell<Instant>,
    attached_at: Cell<Instant>,
    /// Since when torpord wants its memory for others: nothing is waited for any more but the end of what is in flight.
    pressed_at: Cell<Option<Instant>>,
    /// Until when the watcher waits; it looks by itself then.
    looks_at: Cell<Option<Instant>>,
    /// The notice that it is about to sleep, as long as it is under way: the number of its connection.
    notice: Cell<Option<u32>>,
    /// When it was noticed last, and when it was to sleep then.
    noticed: Cell<Option<(Instant, Instant)>>,
    changed: Notify,
    /// The last request in flight has ended.
    ended: Notify,
}

/// Holds an instance awake while it exists.
pub struct Busy {
    instance: Rc<Instance>,
    kind: Kind,
}

impl Drop for Busy {
    fn drop(&mut self) {
        let count = self.instance.count(self.kind);
        count.set(count.get() - 1);
        if count.get() == 0 {
            self.instance.quiet_since.set(Instant::now());
            self.instance.touch();
            self.instance.ended.notify_waiters();
        }
    }
}

impl Busy {
    /// Whom it holds awake.
    #[must_use]
    pub fn instance(&self) -> &Rc<Instance> {
        &self.instance
    }

    /// The same as another kind.
    #[must_use]
    pub fn into_kind(self, kind: Kind) -> Self {
        self.instance.hold(kind)
    }
}

/// The egress policy that torpord names.
///
/// # Errors
/// A text that names the entry.
pub fn policy(egress: &messages::Egress) -> Result<Policy, String> {
    let nets = |texts: &[String]| {
        let parse = |text: &String| {
            let net = text.parse().or_else(|_| text.parse().map(|ip: std::net::IpAddr| ip.into()));
            net.map_err(|_| format!("egress: {text}: no network"))
        };
        texts.iter().map(parse).collect::<Result<Vec<_>, _>>()
    };
    let scope = match egress.scope {
        messages::Scope::None => Scope::Nothing,
        messages::Scope::Public => Scope::Public,
        messages::Scope::Private => Scope::Private,
    };
    Ok(Policy { scope, allow: nets(&egress.allow)?, deny: nets(&egress.deny)? })
}

impl Instance {
    /// An instance over a new link; its tasks run from here on.
    ///
    /// # Errors
    /// A text for torpord.
    pub fn start(proxy: &Rc<Proxy>, attach: Attach, socket: OwnedFd) -> Result<Rc<Self>, String> {
        let policy = policy(&attach.egress)?;
        let link = Link::new(attach.instance, attach.generation, attach.link, socket, policy)
            .map_err(|error| error.to_string())?;
        let instance = Rc::new(Self {
            id: attach.instance,
            link,
            pool: Pool::default(),
            settings: RefCell::new(attach),
            proxy: Rc::downgrade(proxy),
            phase: Cell::new(Phase::Running),
            requests: Cell::new(0),
            connections: Cell::new(0),
            waiters: Cell::new(0),
            used: Cell::new(false),
            served: Cell::new(0),
            quiet_since: Cell::new(Instant::now()),
            attached_at: Cell::new(Instant::now()),
            pressed_at: Cell::new(None),
            looks_at: Cell::new(None),
            notice: Cell::new(None),
            noticed: Cell::new(None),
            changed: Notify::new(),
            ended: Notify::new(),
        });
        let owner: Rc<dyn Owner> = instance.clone();
        instance.link.set_owner(Rc::downgrade(&owner));
        tokio::task::spawn_local(instance.link.clone().pump());
        tokio::task::spawn_local(instance.clone().watch());
        Ok(instance)
    }

    /// It runs again: its connections go on over a new link.
    ///
    /// # Errors
    /// A text for torpord.
    pub fn resume(&self, attach: Attach, socket: OwnedFd) -> Result<(), String> {
        let policy = policy(&attach.egress)?;
        self.link.resume(socket, attach.generation, policy).map_err(|error: io::Error| error.to_string())?;
        self.settings.replace(attach);
        self.phase.set(Phase::Running);
        self.quiet_since.set(Instant::now());
        self.attached_at.set(Instant::now());
        self.pressed_at.set(None);
        self.used.set(false);
        self.served.set(0);
        self.changed.notify_one();
        Ok(())
    }

    /// It is over: everything open is reset.
    pub fn end(&self) {
        self.phase.set(Phase::Gone);
        self.link.reset();
        self.pool.clear();
        self.changed.notify_one();
    }

    /// Where it is.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Of what generation it runs, or slept.
    #[must_use]
    pub fn which(&self) -> Which {
        Which { instance: self.id, generation: self.settings.borrow().generation }
    }

    /// Whose requests it takes.
    #[must_use]
    pub fn group(&self) -> Option<Uuid> {
        self.settings.borrow().group
    }

    /// It belongs to another group from now on, as soon as it is taken in there.
    pub fn join(&self, group: Uuid) {
        self.settings.borrow_mut().group = Some(group);
    }

    /// Requests that are in flight.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.requests.get()
    }

    /// Connections that clients have open through to it.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.get()
    }

    /// Both.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.requests() + self.connections()
    }

    /// What went over its link since it was attached.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let traffic = self.link.traffic();
        Usage { requests: self.served.get(), rx_bytes: traffic.rx_bytes, tx_bytes: traffic.tx_bytes }
    }

    /// What torpord is told of its link.
    #[must_use]
    pub fn known(&self) -> Known {
        let which = self.which();
        let quiet = self.phase() != Phase::Running;
        Known { instance: which.instance, generation: which.generation, quiet, usage: self.usage() }
    }

    /// It takes so many requests and connections, or any number.
    pub fn allow(&self, requests_max: Option<u64>) {
        self.settings.borrow_mut().requests_max = requests_max;
        self.look_at_limit();
    }

    /// It takes nothing new once it has had what it is allowed, and torpord is told.
    fn look_at_limit(&self) {
        let used_up = self.settings.borrow().requests_max.is_some_and(|max| self.served.get() >= max);
        if used_up
            && self.phase.get() == Phase::Running
            && let Some(proxy) = self.proxy.upgrade()
        {
            self.drain();
            proxy.control.tell("used_up", &self.known());
        }
    }

    /// When it was attached.
    #[must_use]
    pub fn attached_at(&self) -> Instant {
        self.attached_at.get()
    }

    fn count(&self, kind: Kind) -> &Cell<usize> {
        match kind {
            Kind::Request => &self.requests,
            Kind::Connection => &self.connections,
            Kind::Waiter => &self.waiters,
        }
    }

    /// Holds it awake.
    #[must_use]
    pub fn busy(self: &Rc<Self>, kind: Kind) -> Busy {
        if kind != Kind::Waiter {
            self.served.set(self.served.get() + 1);
        }
        let busy = self.hold(kind);
        self.look_at_limit();
        busy
    }

    fn hold(self: &Rc<Self>, kind: Kind) -> Busy {
        let count = self.count(kind);
        count.set(count.get() + 1);
        self.used.set(self.used.get() || kind != Kind::Waiter);
        self.pressed_at.set(None);
        Busy { instance: self.clone(), kind }
    }

    /// The watcher looks again, where it would do so too late.
    fn touch(&self) {
        let late = |at: Instant| self.looks_at.get().is_none_or(|looks_at| at < looks_at);
        if self.next().is_some_and(|(at, _)| late(at)) {
            self.changed.notify_one();
        }
    }

    fn scale_to_zero(&self) -> ScaleToZero {
        self.settings.borrow().scale_to_zero
    }

    /// Since when it is silent, if nothing holds it awake.
    #[must_use]
    pub fn silent_since(&self) -> Option<Instant> {
        let in_use = self.requests.get() > 0 || self.waiters.get() > 0 || self.link.is_held();
        if self.phase.get() != Phase::Running || in_use {
            return None;
        }
        match self.scale_to_zero().policy {
            Sleep::Off => None,
            Sleep::On if self.connections.get() > 0 || self.link.outgoing() > 0 => None,
            Sleep::On => Some(self.quiet_since.get()),
            Sleep::Idle if self.link.outgoing() > PARKED_MAX => None,
            Sleep::Idle => Some(self.quiet_since.get().max(self.link.last_traffic())),
        }
    }

    /// When it may sleep, if nothing happens until then.
    fn sleep_at(&self) -> Option<Instant> {
        let since = self.silent_since()?;
        let cooled = since + Duration::from_millis(self.scale_to_zero().cooldown_ms);
        let at = self.pressed_at.get().map_or(cooled, |pressed| cooled.min(pressed.max(since)));
        let used = self.used.get() || self.link.last_traffic() > self.attached_at.get();
        // Whoever it was woken for is about to come.
        Some(if used { at } else { at.max(self.attached_at.get() + UNUSED_TIME) })
    }

    /// Its memory is wanted for others: it does not wait for its cool-down, unless it is asked for something before it sleeps.
    pub fn press(&self) {
        if self.pressed_at.get().is_none() {
            self.pressed_at.set(Some(Instant::now()));
            self.touch();
        }
    }

    /// What is next if nothing happens, and when.
    fn next(&self) -> Option<(Instant, Step)> {
        let at = self.sleep_at()?;
        let ahead = Duration::from_millis(self.scale_to_zero().notify_ms);
        if ahead.is_zero() {
            return Some((at, Step::Sleep));
        }
        Some(match self.noticed.get() {
            Some((when, then)) if then == at => (at.max(when + ahead), Step::Sleep),
            _ => (at.checked_sub(ahead).unwrap_or(at), Step::Notify(at)),
        })
    }

    /// Puts the instance to sleep whenever it may.
    async fn watch(self: Rc<Self>) {
        while self.phase.get() != Phase::Gone {
            let next = self.next();
            self.looks_at.set(next.map(|(at, _)| at));
            match next {
                Some((at, step)) if at <= Instant::now() => match step {
                    Step::Sleep => self.fall_asleep().await,
                    Step::Notify(sleep_at) => self.notify(sleep_at),
                },
                Some((at, _)) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(at.into()) => {}
                        () = self.changed.notified() => {}
                    }
                }
                None => self.changed.notified().await,
            }
        }
    }

    /// Tells the guest that it is about to sleep, if it listens for that.
    fn notify(self: &Rc<Self>, sleep_at: Instant) {
        self.noticed.set(Some((Instant::now(), sleep_at)));
        self.end_notice();
        let Ok((mut stream, opening)) = self.link.connect_notice(NOTICE_PORT) else { return };
        self.notice.set(Some(stream.number()));
        let instance = self.clone();
        tokio::task::spawn_local(async move {
            let number = stream.number();
            let told = async {
                opening.await?;
                stream.write_all(NOTICE).await?;
                stream.shutdown().await
            };
            // A guest that does not listen has nothing to hear.
            let _ = told.await;
            drop(stream);
            if instance.notice.get() == Some(number) {
                instance.notice.set(None);
            }
        });
    }

    fn end_notice(&self) {
        if let Some(number) = self.notice.take() {
            self.link.close(number);
        }
    }

    async fn fall_asleep(self: &Rc<Self>) {
        let Some(proxy) = self.proxy.upgrade() else { return };
        if !proxy.control.is_present() {
            // Nobody could put it down, nor take that back for who comes meanwhile.
            tokio::select! {
                () = proxy.control.present() => {}
                () = self.changed.notified() => {}
            }
            return;
        }
        self.pressed_at.set(None);
        self.be_quiet();
        let (which, known) = (self.which(), self.known());
        let slept: Slept = loop {
            proxy.control.present().await;
            if self.phase.get() != Phase::Quiet {
                return;
            }
            match proxy.control.ask("idle", &known).await {
                Ok(slept) => break slept,
                // Asked again of the next torpord, which may have let it go on or detached it already.
                Err(AskError::Lost) => {}
                Err(AskError::Refused(refusal)) => {
                    break Slept { parked: false, why: Some(refusal.message) };
                }
            }
        };
        if self.phase.get() != Phase::Quiet || self.which() != which {
            return;
        }
        if slept.parked {
            self.settle();
        } else {
            self.go_on();
            if self.requests.get() == 0 {
                self.quiet_since.set(Instant::now() + IDLE_AGAIN);
            }
        }
    }

    /// Nothing is sent any more. No connection of the proxy's own outlives an incarnation.
    pub fn be_quiet(&self) {
        if self.phase.get() != Phase::Quiet {
            self.pool.clear_on(&self.link);
            self.end_notice();
        }
        self.link.quiet();
        self.phase.set(Phase::Quiet);
    }

    /// No new requests are taken.
    pub fn drain(&self) {
        if self.phase.get() == Phase::Running {
            self.phase.set(Phase::Draining);
        }
    }

    /// Waits until `left` counts nothing any more.
    pub async fn drained(&self, left: impl Fn(&Self) -> usize) {
        while left(self) > 0 && self.phase.get() == Phase::Draining {
            let ended = self.ended.notified();
            if left(self) > 0 {
                ended.await;
            }
        }
    }

    /// It goes on as before.
    pub fn go_on(&self) {
        if matches!(self.phase.get(), Phase::Quiet | Phase::Draining) {
            self.link.go_on();
            self.phase.set(Phase::Running);
            self.quiet_since.set(Instant::now());
            self.changed.notify_one();
        }
    }

    /// Its state is committed: what it has open is kept, and without anything open it is forgotten. Whether its VM process
    /// has closed the link yet does not matter: it sends nothing for a guest that has stopped.
    pub fn settle(&self) {
        let Some(proxy) = self.proxy.upgrade() else { return };
        if !matches!(self.phase.get(), Phase::Quiet | Phase::Draining) {
            return;
        }
        self.link.drain();
        if self.phase.get() == Phase::Gone {
            // Its last words broke the rules.
            return;
        }
        self.link.park_at_most(PARKED_MAX);
        if self.link.has_connections() {
            self.phase.set(Phase::Asleep);
            // Something may have been said meanwhile.
            self.link.look_again();
        } else {
            proxy.forget_instance(self);
        }
    }
}

impl Owner for Instance {
    fn output(&self, bytes: &[u8]) {
        if let Some(proxy) = self.proxy.upgrade() {
            proxy.output.borrow_mut().take(&proxy.control, self.which(), bytes);
        }
    }

    fn has_word(&self) {
        if matches!(self.phase.get(), Phase::Quiet | Phase::Asleep)
            && let Some(proxy) = self.proxy.upgrade()
        {
            proxy.wake_for_word(self.id);
        }
    }

    fn let_go(&self) {
        self.quiet_since.set(self.quiet_since.get().max(Instant::now()));
        self.touch();
    }

    fn ended(&self, violation: Option<Violation>) {
        let Some(proxy) = self.proxy.upgrade() else { return };
        if let Some(violation) = &violation {
            say!("instance {}: its VM process broke the protocol: {violation}", self.id);
        }
        if matches!(self.phase.get(), Phase::Running | Phase::Draining) || violation.is_some() {
            let link = self.settings.borrow().link;
            proxy.control.tell("link_lost", &LinkLost { which: self.which(), link, usage: self.usage() });
            proxy.forget_instance(self);
        }
    }
}
