//! Which instances run, and who may be reached through which name.

use crate::control::messages::{Group, Service};
use crate::host::Host;
use crate::instance::{Instance, Phase};
use crate::limits::{EXHAUSTED_TIME, MISSES_MAX};
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;
use std::time::Instant;
use uuid::Uuid;

/// Groups none of whose instances is attached yet.
const GROUPS_WAITING_MAX: usize = 4096;

/// See the module's text. Nothing here grows with what exists, only with what runs.
#[derive(Default)]
pub struct Routes {
    instances: HashMap<Uuid, Rc<Instance>>,
    groups: HashMap<Uuid, Entry>,
    /// Full names and wildcards (`*.suffix`).
    hosts: HashMap<Box<str>, Uuid>,
    /// Groups without an instance, oldest first, with the number of their turn; those that have got one since, or begun
    /// to wait anew, are passed over.
    waiting: VecDeque<(Uuid, u64)>,
    turns: u64,
    misses: Misses,
}

struct Entry {
    group: Rc<Group>,
    members: Vec<Uuid>,
    /// When it began to wait for an instance last, as the number of a turn.
    turn: u64,
    /// There is nothing more to wake before that.
    exhausted_until: Option<Instant>,
}

/// Names that nobody has, with their ports.
#[derive(Default)]
struct Misses {
    known: HashSet<(Host, u16)>,
    oldest: VecDeque<(Host, u16)>,
}

/// Where a name leads.
pub enum Found {
    /// Nobody known has it.
    Unknown,
    /// torpord was asked, and nobody has it.
    Miss,
    /// A group.
    Group(Rc<Group>),
}

/// Who takes a request.
pub enum Choice {
    /// This one.
    Use(Rc<Instance>),
    /// One that does not run yet, and none of these, which have enough to do.
    Another(Vec<Uuid>),
    /// Those that run are at their limit, and there are no others.
    Full,
    /// Nobody runs.
    None,
}

impl Routes {
    /// All instances.
    pub fn instances(&self) -> impl Iterator<Item = &Rc<Instance>> {
        self.instances.values()
    }

    /// One.
    #[must_use]
    pub fn instance(&self, id: Uuid) -> Option<&Rc<Instance>> {
        self.instances.get(&id)
    }

    /// Takes an instance in; one that is known already only has its group looked at anew.
    pub fn add(&mut self, instance: Rc<Instance>) {
        self.leave_groups(instance.id);
        if let Some(entry) = instance.group().and_then(|group| self.groups.get_mut(&group)) {
            entry.members.push(instance.id);
        }
        self.instances.insert(instance.id, instance);
    }

    fn leave_groups(&mut self, id: Uuid) {
        let Some(old) = self.instances.get(&id).and_then(|instance| instance.group()) else { return };
        // The instance may have changed its group since it was added; groups are few and small.
        let holds = |entry: &Entry| entry.members.contains(&id);
        let of = if self.groups.get(&old).is_some_and(holds) {
            Some(old)
        } else {
            self.groups.iter().find(|(_, entry)| holds(entry)).map(|(group, _)| *group)
        };
        let Some(of) = of else { return };
        if let Some(entry) = self.groups.get_mut(&of) {
            entry.members.retain(|member| *member != id);
            entry.exhausted_until = None;
            if entry.members.is_empty() {
                self.wait(of);
            }
        }
    }

    fn wait(&mut self, group: Uuid) {
        let Some(entry) = self.groups.get_mut(&group) else { return };
        self.turns += 1;
        entry.turn = self.turns;
        self.waiting.push_back((group, self.turns));
        if self.waiting.len() > GROUPS_WAITING_MAX
            && let Some((oldest, turn)) = self.waiting.pop_front()
            && self.groups.get(&oldest).is_some_and(|entry| entry.turn == turn && entry.members.is_empty())
        {
            self.forget_group(oldest);
        }
    }

    /// Forgets an instance; its group goes with the last of them.
    pub fn remove(&mut self, id: Uuid) {
        let group = self.instances.get(&id).and_then(|instance| instance.group());
        self.leave_groups(id);
        self.instances.remove(&id);
        if let Some(group) = group
            && self.groups.get(&group).is_some_and(|entry| entry.members.is_empty())
        {
            self.forget_group(group);
        }
    }

    /// Takes a group in, in place of what was known of it.
    pub fn set_group(&mut self, group: Group) {
        let id = group.group;
        let members = self.groups.get(&id).map(|entry| entry.members.clone());
        if members.is_some() {
            self.forget_group(id);
        }
        if group.gone {
            return;
        }
        for host in &group.hosts {
            let host = host.trim_end_matches('.').to_ascii_lowercase();
            self.misses.forget(&host);
            self.hosts.insert(host.into(), id);
        }
        let members = members.unwrap_or_default();
        let is_empty = members.is_empty();
        self.groups.insert(id, Entry { group: Rc::new(group), members, turn: 0, exhausted_until: None });
        if is_empty {
            self.wait(id);
        }
    }

    /// A group that is known.
    #[must_use]
    pub fn group(&self, id: Uuid) -> Option<Rc<Group>> {
        self.groups.get(&id).map(|entry| entry.group.clone())
    }

    /// Takes a group in again that went with the last of its instances, where another one is about to come.
    pub fn keep_group(&mut self, group: &Group) {
        if !self.groups.contains_key(&group.group) {
            self.set_group(group.clone());
        }
    }

    fn forget_group(&mut self, id: Uuid) {
        let Some(entry) = self.groups.remove(&id) else { return };
        for host in &entry.group.hosts {
            let host = host.trim_end_matches('.').to_ascii_lowercase();
            if self.hosts.get(&host[..]) == Some(&id) {
                self.hosts.remove(&host[..]);
            }
        }
    }

    /// Where a name leads: the full name before a wildcard one label up.
    #[must_use]
    pub fn find(&self, host: &Host, port: u16) -> Found {
        let wildcard = || host.parent().and_then(|parent| self.hosts.get(&format!("*.{parent}")[..]));
        let group = self.hosts.get(host.as_str()).or_else(wildcard).and_then(|id| self.groups.get(id));
        match group {
            Some(entry) => Found::Group(entry.group.clone()),
            None if self.misses.known.contains(&(host.clone(), port)) => Found::Miss,
            None => Found::Unknown,
        }
    }

    /// The service of a group at a port.
    #[must_use]
    pub fn service(group: &Group, port: u16) -> Option<&Service> {
        group.services.iter().find(|service| service.port == port)
    }

    /// Who of a group is to take a request: the one with the least to do. Above the soft limit another one is to be woken,
    /// while there is any; above the hard limit nobody takes it.
    #[must_use]
    pub fn choose(&self, group: Uuid) -> Choice {
        let Some(entry) = self.groups.get(&group) else { return Choice::None };
        let load = |instance: &Rc<Instance>| instance.in_flight();
        let members = entry.members.iter().filter_map(|id| self.instances.get(id));
        let running: Vec<&Rc<Instance>> = members.filter(|instance| instance.phase() == Phase::Running).collect();
        let Some(least) = running.iter().min_by_key(|instance| load(instance)) else { return Choice::None };
        let within = |limit: Option<u32>| limit.is_none_or(|limit| load(least) < limit as usize);
        let exhausted = entry.exhausted_until.is_some_and(|until| Instant::now() < until);
        match (within(entry.group.hard_limit), within(entry.group.soft_limit), exhausted) {
            (true, true, _) | (true, _, true) => Choice::Use((*least).clone()),
            (false, _, true) => Choice::Full,
            _ => Choice::Another(running.iter().map(|instance| instance.id).collect()),
        }
    }

    /// Nothing more can be woken behind this name for a while.
    pub fn exhausted(&mut self, host: &Host) {
        let Found::Group(group) = self.find(host, 0) else { return };
        if let Some(entry) = self.groups.get_mut(&group.group) {
            entry.exhausted_until = Some(Instant::now() + EXHAUSTED_TIME);
        }
    }

    /// An instance of a group that is about to sleep or sleeps. Whether one that is drained will serve again torpord knows.
    #[must_use]
    pub fn drowsy(&self, group: Uuid) -> Option<Uuid> {
        let entry = self.groups.get(&group)?;
        entry.members.iter().copied().find(|id| {
            let phase = self.instances.get(id).map(|instance| instance.phase());
            matches!(phase, Some(Phase::Quiet | Phase::Asleep))
        })
    }

    /// torpord knows no such name.
    pub fn miss(&mut self, host: &Host, port: u16) {
        self.misses.remember((host.clone(), port));
    }

    /// What is known of these names is forgotten.
    pub fn forget(&mut self, hosts: &[String]) {
        for host in hosts {
            let host = host.trim_end_matches('.').to_ascii_lowercase();
            self.misses.forget(&host);
            self.hosts.remove(&host[..]);
        }
    }

    /// All misses are forgotten.
    pub fn forget_misses(&mut self) {
        self.misses = Misses::default();
    }
}

impl Misses {
    fn remember(&mut self, name: (Host, u16)) {
        if self.known.insert(name.clone()) {
            self.oldest.push_back(name);
        }
        while self.oldest.len() > MISSES_MAX {
            if let Some(oldest) = self.oldest.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }

    fn forget(&mut self, host: &str) {
        self.known.retain(|(name, _)| !name.is_named_by(host));
        self.oldest.retain(|(name, _)| !name.is_named_by(host));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(n: u128, hosts: &[&str]) -> Group {
        let service = Service { port: 80, destination_port: 8080, handlers: Vec::new(), retry_idempotent: false };
        Group {
            group: Uuid::from_u128(n),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            services: vec![service],
            soft_limit: None,
            hard_limit: None,
            gone: false,
        }
    }

    fn found(routes: &Routes, host: &str) -> Option<u128> {
        match routes.find(&Host::parse(host).expect("a name"), 80) {
            Found::Group(group) => Some(group.group.as_u128()),
            Found::Miss => Some(0),
            Found::Unknown => None,
        }
    }

    #[test]
    fn full_names_come_before_wildcards() {
        let mut routes = Routes::default();
        routes.set_group(group(1, &["*.example"]));
        routes.set_group(group(2, &["App.example."]));
        assert_eq!(found(&routes, "app.EXAMPLE:8080"), Some(2));
        assert_eq!(found(&routes, "other.example"), Some(1));
        assert_eq!(found(&routes, "a.b.example"), None);
        assert_eq!(found(&routes, "example"), None);
        routes.set_group(Group { gone: true, ..group(2, &[]) });
        assert_eq!(found(&routes, "app.example"), Some(1));
        routes.set_group(group(1, &["one.example"]));
        assert_eq!((found(&routes, "app.example"), found(&routes, "one.example")), (None, Some(1)));
    }

    #[test]
    fn misses_are_bounded_and_end_with_a_group_or_a_notice() {
        let mut routes = Routes::default();
        for n in 0..2 * MISSES_MAX {
            routes.miss(&Host::parse(&format!("h{n}.example")).expect("a name"), 80);
        }
        assert_eq!((routes.misses.known.len(), routes.misses.oldest.len()), (MISSES_MAX, MISSES_MAX));
        let last = format!("h{}.example", 2 * MISSES_MAX - 1);
        assert_eq!((found(&routes, "h0.example"), found(&routes, &last)), (None, Some(0)));
        routes.set_group(group(1, &[&last]));
        assert_eq!(found(&routes, &last), Some(1));
        let other = format!("h{}.example", 2 * MISSES_MAX - 2);
        routes.forget(std::slice::from_ref(&other));
        assert_eq!(found(&routes, &other), None);
        routes.forget(&["*.example".to_owned()]);
        assert!(routes.misses.known.is_empty() && routes.misses.oldest.is_empty());
    }

    #[test]
    fn a_group_that_comes_again_and_again_is_there_each_time() {
        let mut routes = Routes::default();
        for _ in 0..3 * GROUPS_WAITING_MAX {
            routes.set_group(group(1, &["one.example"]));
            assert_eq!(found(&routes, "one.example"), Some(1));
        }
    }

    #[test]
    fn groups_that_no_instance_joins_are_forgotten() {
        let mut routes = Routes::default();
        for n in 0..2 * GROUPS_WAITING_MAX {
            routes.set_group(group(n as u128, &[&format!("h{n}.example")]));
        }
        assert_eq!((routes.groups.len(), routes.hosts.len()), (GROUPS_WAITING_MAX, GROUPS_WAITING_MAX));
    }
}
