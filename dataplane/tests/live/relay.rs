//! A bad cable: carries frames between two wires, and loses, repeats and holds back some of them, as its seed says.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sluice_dataplane::nic::open::{DriverSpec, PortSpec, open};
use sluice_dataplane::nic::{Burst, Driver, FrameMemory, vlan};

use crate::random::Random;
use crate::sandbox::now;

/// What befalls frames, in thousandths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    pub(crate) lost: usize,
    pub(crate) repeated: usize,
    /// Microseconds that the copy comes late, at most.
    pub(crate) late: u64,
    /// Held back for up to `HELD_MAX`, so that later ones overtake.
    pub(crate) held: usize,
}

/// A good cable.
pub(crate) const UNHARMED: Faults = Faults {
    lost: 0,
    repeated: 0,
    late: 0,
    held: 0,
};

/// Microseconds that a frame is held back at most.
const HELD_MAX: u64 = 5_000;

/// Frames remembered: of more connections than a soak has in a minute.
const TURNS: usize = 1 << 16;
/// TCP's flags of which one is set where a connection begins or ends.
const SYN_FIN_RST: u8 = 0x07;

#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) carried: AtomicU64,
    pub(crate) lost: AtomicU64,
    pub(crate) repeated: AtomicU64,
    pub(crate) held: AtomicU64,
}

/// What must never be on the cable: looks at a frame and the end it came in at, 0 or 1, and says what is wrong with it.
pub(crate) type Inspect = fn(usize, &[u8]) -> Option<String>;

pub(crate) struct Relay {
    name: &'static str,
    counts: Arc<Counts>,
    complaints: Receiver<String>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct Cable {
    memory: FrameMemory,
    ends: [Box<dyn Driver>; 2],
    random: Random,
    faults: Faults,
    held: Vec<(Instant, usize, Vec<u8>)>,
    /// Frames that begin or end TCP connections over IPv4, by the end they came in at, and how the dice fell: so that a
    /// complaint about one tells what went before it.
    turns: VecDeque<(Instant, usize, Vec<u8>, usize)>,
    counts: Arc<Counts>,
    inspect: Inspect,
    complaints: SyncSender<String>,
}

impl Relay {
    /// Carries between the wires `ends` until dropped; of one that is named `WIRE.VLAN` frames of that VLAN, which have no tag at
    /// the other end.
    pub(crate) fn start(
        name: &'static str,
        ends: [&str; 2],
        faults: Faults,
        seed: u64,
        inspect: Inspect,
    ) -> Self {
        let mut memory = FrameMemory::new(8192, 2048).unwrap();
        let ends = ends.map(|wire| {
            let (name, id) = wire.split_once('.').unwrap_or((wire, "0"));
            let spec = PortSpec::new(name, name, DriverSpec::AfPacket { fanout: None });
            let driver = open(&spec, &mut memory, &mut None).unwrap();
            vlan::share(driver, &[id.parse().unwrap()]).unwrap().remove(0)
        });
        let (counts, stop) = (Arc::new(Counts::default()), Arc::new(AtomicBool::new(false)));
        let (complain, complaints) = sync_channel(16);
        let mut cable = Cable {
            memory,
            ends,
            random: Random(seed),
            faults,
            held: Vec::new(),
            turns: VecDeque::new(),
            counts: Arc::clone(&counts),
            inspect,
            complaints: complain,
        };
        let end = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !end.load(Relaxed) {
                cable.turn();
            }
        });
        Self {
            name,
            counts,
            complaints,
            stop,
            thread: Some(thread),
        }
    }

    /// What should never have been on this cable, a few of it.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.complaints.try_iter().collect()
    }

    /// What it carried and did not, for a person.
    pub(crate) fn report(&self) -> String {
        let Counts {
            carried,
            lost,
            repeated,
            held,
        } = &*self.counts;
        let [carried, lost, repeated, held] =
            [carried, lost, repeated, held].map(|count| count.load(Relaxed));
        format!(
            "{} carried {carried} frames, lost {lost}, repeated {repeated}, held back {held}",
            self.name
        )
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Both ports of a TCP packet over IPv4 without options, the lower one first.
fn ports(bytes: &[u8]) -> Option<[u16; 2]> {
    if bytes.len() < 54 || bytes[12..15] != [8, 0, 0x45] || bytes[23] != 6 {
        return None;
    }
    let [a, b] = [34, 36].map(|at| u16::from_be_bytes([bytes[at], bytes[at + 1]]));
    Some([a.min(b), a.max(b)])
}

impl Cable {
    fn turn(&mut self) {
        let mut idle = true;
        for end in [0, 1] {
            let mut frames = Burst::new();
            self.ends[end].rx_burst(&mut self.memory, &mut frames);
            idle &= frames.is_empty();
            let received: Vec<Vec<u8>> = frames
                .iter()
                .map(|frame| self.memory.bytes(frame).to_vec())
                .collect();
            frames.drain(..).for_each(|frame| self.memory.free(frame));
            received.into_iter().for_each(|bytes| self.judge(end, bytes));
        }
        self.release();
        if idle {
            let [a, b] = [&self.ends[0], &self.ends[1]].map(|end| end.wait_fd().unwrap());
            let mut fds = [PollFd::new(&a, PollFlags::IN), PollFd::new(&b, PollFlags::IN)];
            let wait = if self.held.is_empty() { 20_000_000 } else { 500_000 };
            let _ = poll(
                &mut fds,
                Some(&Timespec {
                    tv_sec: 0,
                    tv_nsec: wait,
                }),
            );
        }
    }

    fn judge(&mut self, from: usize, bytes: Vec<u8>) {
        let dice = self.random.below(1000);
        self.remember(from, &bytes, dice);
        if let Some(complaint) = (self.inspect)(from, &bytes) {
            // Those that do not fit are as bad as those that do.
            let _ = self.complaints.try_send(complaint + &self.before(&bytes));
        }
        let Faults {
            lost,
            repeated,
            late,
            held,
        } = self.faults;
        let counted = match dice {
            _ if dice < lost => &self.counts.lost,
            _ if dice < lost + repeated => {
                self.send(1 - from, &bytes);
                let wait = Duration::from_micros(1 + self.random.next() % late.max(1));
                self.held.push((now() + wait, 1 - from, bytes));
                &self.counts.repeated
            }
            _ if dice < lost + repeated + held => {
                let wait = Duration::from_micros(1 + self.random.next() % HELD_MAX);
                self.held.push((now() + wait, 1 - from, bytes));
                &self.counts.held
            }
            _ => {
                self.send(1 - from, &bytes);
                &self.counts.carried
            }
        };
        counted.fetch_add(1, Relaxed);
    }

    fn remember(&mut self, from: usize, bytes: &[u8], dice: usize) {
        if ports(bytes).is_some() && bytes[47] & SYN_FIN_RST != 0 {
            if self.turns.len() == TURNS {
                self.turns.pop_front();
            }
            self.turns.push_back((now(), from, bytes[..54].to_vec(), dice));
        }
    }

    /// What was remembered of the connections between this frame's ports, whichever their addresses.
    fn before(&self, bytes: &[u8]) -> String {
        let between = ports(bytes);
        let same = |turn: &&(Instant, usize, Vec<u8>, usize)| between.is_some() && ports(&turn.2) == between;
        self.turns
            .iter()
            .filter(same)
            .map(|(when, from, bytes, dice)| {
                let ago = when.elapsed().as_secs_f64();
                format!("\n  {ago:.3} s before, at end {from}, dice {dice}: {bytes:02x?}")
            })
            .collect()
    }

    fn release(&mut self) {
        let time = now();
        let due = |held: &(Instant, usize, Vec<u8>)| held.0 <= time;
        while let Some(place) = self.held.iter().position(due) {
            let (_, to, bytes) = self.held.swap_remove(place);
            self.send(to, &bytes);
        }
    }

    /// What finds no room is lost, as on any cable.
    fn send(&mut self, to: usize, bytes: &[u8]) {
        let mut frames = Burst::new();
        frames.extend(self.memory.copy_in(bytes));
        self.ends[to].tx_burst(&mut self.memory, &mut frames);
        frames.drain(..).for_each(|frame| self.memory.free(frame));
    }
}
