//! Which endpoint a new flow goes to. Takes an endpoint set and the client's hash, gives a backend. What an algorithm
//! has to remember is in the worker's own `Picker`; nothing here is shared between workers. Affinity is not decided
//! here: whoever holds it asks only when it has no answer.

use super::hash::{hash, join, reduce};
use super::limits::TableLimits;
use super::service_port::EndpointSet;
use super::side::Keyed;
use crate::addr::Port;
use crate::channel::record::Algorithm;
use crate::index::{BackendIndex, ServicePortIndex};

/// The hash of a client that `Tables::choose` takes; equal on every gateway, so that Maglev's choice is. With port 0
/// it names the client's address alone.
pub fn client_hash<A: Keyed>(address: A, port: Port) -> u64 {
    hash(join(address.words(port.number().into()).as_ref()), 3)
}

/// How many endpoints least-connections compares, from a random one on: a new flow costs the same in a set of
/// thousands, and the best of 32 is near the best of all (Mitzenmacher, "The Power of Two Choices", 2001).
const COMPARED: usize = 32;

/// What a worker remembers to choose by: its random numbers, whose turn it is, and how many flows each backend has.
///
/// Memory is bounded by the limits (4 bytes per service port, 8 per backend) and, since untouched pages of zeroes cost
/// nothing, used only as far as an algorithm needs it.
#[derive(Debug)]
pub struct Picker {
    random: u64,
    /// Where this worker's turns begin, so that workers do not all favour the first endpoint.
    first_turn: u32,
    /// By service port: flows placed in turn.
    turns: Vec<u32>,
    /// By backend slot: generation of the counted occupant, and its live flows.
    live: Vec<[u32; 2]>,
}

impl Picker {
    /// A picker for one worker; the same seed makes the same choices.
    pub fn new(seed: u64, limits: &TableLimits) -> Self {
        let mut picker = Self {
            random: seed,
            first_turn: 0,
            turns: vec![0; limits.service_ports as usize],
            live: vec![[0; 2]; limits.backends as usize],
        };
        picker.first_turn = picker.next() as u32;
        picker
    }

    /// The next random number: a counter, hashed (as SplitMix and wyrand do).
    fn next(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0xa076_1d64_78bd_642f);
        hash(self.random, 4)
    }

    /// Any number, for whoever else needs one that an outsider cannot guess.
    pub fn random(&mut self) -> u64 {
        self.next()
    }

    /// A flow to this backend was opened. Needed for least-connections service ports only.
    pub fn opened(&mut self, backend: BackendIndex, generation: u32) {
        if let Some(slot) = self.live.get_mut(backend.get()) {
            // A new occupant starts from nothing: its predecessor's flows are not its own.
            let flows = if slot[0] == generation { slot[1] } else { 0 };
            *slot = [generation, flows.saturating_add(1)];
        }
    }

    /// A flow to this backend ended. Ignored if the slot has another occupant by now.
    pub fn closed(&mut self, backend: BackendIndex, generation: u32) {
        if let Some(slot) = self.live.get_mut(backend.get())
            && slot[0] == generation
        {
            slot[1] = slot[1].saturating_sub(1);
        }
    }

    fn in_turn(&mut self, service_port: ServicePortIndex, count: usize) -> usize {
        // The index is below the limit wherever both come from the same configuration; if not, still a fair choice.
        let Some(turn) = self.turns.get_mut(service_port.get()) else {
            return self.any(count);
        };
        *turn = turn.wrapping_add(1);
        self.first_turn.wrapping_add(*turn) as usize % count
    }

    fn any(&mut self, count: usize) -> usize {
        reduce(self.next(), count)
    }

    fn least(&mut self, backends: &[BackendIndex], generation: impl Fn(BackendIndex) -> u32) -> usize {
        let first = self.any(backends.len());
        let flows = |position: usize| {
            let backend = backends[position];
            match self.live.get(backend.get()) {
                Some(slot) if slot[0] == generation(backend) => slot[1],
                _ => 0,
            }
        };
        let compared = (0..backends.len().min(COMPARED)).map(|i| (first + i) % backends.len());
        compared.min_by_key(|&position| flows(position)).unwrap_or(first)
    }

    /// A backend of `set` for a new flow of the client with this hash; `None` only if the set is empty.
    /// `generation` tells the present occupant of a slot.
    pub(super) fn choose(
        &mut self,
        algorithm: Algorithm,
        service_port: ServicePortIndex,
        set: &EndpointSet,
        client: u64,
        generation: impl Fn(BackendIndex) -> u32,
    ) -> Option<BackendIndex> {
        let backends = set.backends();
        let position = match (algorithm, backends.len()) {
            (_, 0) => return None,
            (_, 1) => 0,
            (Algorithm::Random, count) => self.any(count),
            (Algorithm::RoundRobin, count) => self.in_turn(service_port, count),
            (Algorithm::LeastConnections, _) => self.least(backends, generation),
            (Algorithm::Maglev, _) => {
                let slots = set.maglev();
                // Hashed once more: callers may hand a hash whose high bits say little.
                slots
                    .get(reduce(hash(client, 5), slots.len()))
                    .map_or(0, |&position| position as usize)
            }
        };
        backends.get(position).copied()
    }
}
