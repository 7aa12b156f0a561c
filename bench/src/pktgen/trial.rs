//! One trial: packets are sent when they are due, turned round by the pods, and judged wherever they come out.
//!
//! One thread does all, a turn at a time: what came out toward the pods is judged and answered, what came back to the
//! clients is judged, what is due is sent. Time is handed in, so tests move it by hand. Nothing is allocated per packet.

use sluice_dataplane::nic::{Burst, Frame, FrameMemory};

use super::judge::{Judge, Judgement, TIME_UNIT, What, Wrong};
use super::layout::{Family, IP, IP_CHECKSUM, l4};
use super::lives::{self, Act, Life, Script};
use super::neighbours;
use super::picks::{Picks, Random, Weighted};
use super::ports::{Ports, Side};
use super::schedule::Schedule;
use super::stamp::Stamp;
use super::tally::Tally;
use super::template::{Segment, Template, fold, seal_tcp, words};
use super::world::World;

/// Connections looked at in a turn for whether they have waited too long.
const LOOKED_AT: usize = 32;
/// Flows tried for one that has no connection now.
const TRIED: usize = 8;

/// What begins when something is due.
#[derive(Clone, Debug)]
pub enum Kind {
    /// A datagram.
    Udp(Template),
    /// A TCP connection.
    Life,
}

/// How TCP connections look.
#[derive(Clone, Debug)]
pub struct Tcp {
    /// What they say.
    pub script: Script,
    /// A segment without data, and a request.
    pub empty: Template,
    /// The latter.
    pub request: Template,
    /// How long an answer may take, ns.
    pub patience: u64,
}

impl Tcp {
    /// For traffic without connections; any template.
    pub fn none(template: Template) -> Self {
        Self {
            script: Script {
                requests: 0,
                bytes: 0,
            },
            empty: template.clone(),
            request: template,
            patience: 0,
        }
    }
}

/// What is sent.
#[derive(Clone, Debug)]
pub struct Traffic {
    /// Who is who.
    pub world: World,
    /// Flows.
    pub flows: u32,
    /// Which is next.
    pub picks: Picks,
    /// What is next.
    pub mix: (Weighted, Vec<Kind>),
    /// For `Kind::Life`.
    pub tcp: Tcp,
    /// Whether pods answer datagrams.
    pub answer: bool,
    /// Seed of everything random.
    pub seed: u64,
}

/// A connection as the pods' side sees it: when it began, and how far its numbers are.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    began: u32,
    place: u32,
}

/// A trial under way.
pub struct Trial<'a> {
    ports: &'a mut Ports,
    traffic: &'a mut Traffic,
    schedule: Schedule,
    number: u16,
    began: u64,
    random: Random,
    /// By flow: datagrams sent; the endpoint of each; connections at both ends.
    sent: Vec<u32>,
    bound: Vec<u32>,
    lives: Vec<Life>,
    heard: Vec<Heard>,
    look: usize,
    live: u64,
    tally: Tally,
}

impl<'a> Trial<'a> {
    /// Begins at `now`. `number` must differ from the trial's before.
    pub fn begin(
        ports: &'a mut Ports,
        traffic: &'a mut Traffic,
        schedule: Schedule,
        number: u16,
        now: u64,
    ) -> Self {
        let flows = traffic.flows as usize;
        let tcp = traffic.mix.1.iter().any(|kind| matches!(kind, Kind::Life));
        let connections = if tcp { flows } else { 0 };
        ports.clear();
        Self {
            random: Random(traffic.seed),
            ports,
            schedule,
            number,
            began: now,
            sent: vec![0; flows],
            bound: vec![u32::MAX; flows],
            lives: vec![Life::default(); connections],
            heard: vec![Heard::default(); connections],
            look: 0,
            live: 0,
            tally: Tally::new(flows),
            traffic,
        }
    }

    /// One turn; `clock` gives the time in ns. How many packets there were.
    pub fn turn(&mut self, mut clock: impl FnMut() -> u64) -> usize {
        let mut frames = Burst::new_const();
        let Ports { memory, pods, .. } = &mut *self.ports;
        pods.driver.rx_burst(memory, &mut frames);
        let now = clock();
        let mut packets = frames.len();
        frames.drain(..).for_each(|frame| self.at_pods(frame, now));
        let Ports {
            memory,
            clients,
            pods,
        } = &mut *self.ports;
        self.tally.back.sent += pods.flush(memory);
        clients.driver.rx_burst(memory, &mut frames);
        let now = clock();
        packets += frames.len();
        frames.drain(..).for_each(|frame| self.at_clients(frame, now));
        let now = clock();
        while !self.ports.clients.out.is_full()
            && let Some(due) = self.schedule.take(now)
        {
            self.tally.latest = self.tally.latest.max(now - due);
            self.start(due, now);
            packets += 1;
        }
        let Ports { memory, clients, .. } = &mut *self.ports;
        self.tally.forward.sent += clients.flush(memory);
        self.look_after(now);
        packets
    }

    /// Whether everything was sent.
    pub fn is_sent(&self, now: u64) -> bool {
        self.schedule.is_over(now) && self.ports.clients.out.is_empty()
    }

    /// Sends nothing more of what is due: what has not been sent by now is counted as that.
    pub fn stop_sending(&mut self) {
        if self.schedule.planned().is_some() {
            while self.schedule.take(u64::MAX).is_some() {
                self.tally.unsent += 1;
            }
        }
        self.schedule = Schedule::Max { until: 0 };
        let Ports { memory, clients, .. } = &mut *self.ports;
        self.tally.unsent += clients.out.len() as u64;
        clients.out.drain(..).for_each(|frame| memory.free(frame));
    }

    /// Whether everything came back that will.
    pub fn is_complete(&self) -> bool {
        let Tally { forward, back, .. } = &self.tally;
        self.live == 0 && forward.lost() == 0 && back.lost() == 0 && self.ports.pods.out.is_empty()
    }

    /// What was counted so far.
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Ends it: what has not come is lost.
    pub fn end(mut self) -> Tally {
        self.stop_sending();
        self.tally.unanswered += self.ports.pods.out.len() as u64;
        self.ports.clear();
        self.tally.lives.failed += self.live;
        self.tally
    }

    const fn judge(&self, now: u64) -> Judge<'_> {
        Judge {
            world: &self.traffic.world,
            flows: self.traffic.flows,
            trial: self.number,
            began: self.began,
            now,
        }
    }

    /// A frame that came out toward the pods.
    fn at_pods(&mut self, mut frame: Frame, now: u64) {
        let (judgement, endpoint) = self.judge(now).at_pods(self.ports.memory.bytes(&frame));
        let Judgement::Right(arrived) = judgement else {
            return self.refuse(frame, judgement, false);
        };
        let flow = arrived.flow as usize;
        let latency = now.saturating_sub(arrived.due);
        let answer = match arrived.what {
            What::Udp(sequence) => {
                let bound = &mut self.bound[flow];
                if *bound == u32::MAX {
                    *bound = endpoint;
                } else if *bound != endpoint {
                    let bytes = self.ports.memory.bytes(&frame);
                    self.tally.wrong(false, Wrong::Moved, bytes);
                    return self.ports.memory.free(frame);
                }
                if self.tally.forward.arrived(arrived.flow, sequence, latency) && self.traffic.answer {
                    turn_round(
                        self.traffic.world.family(),
                        self.ports.memory.bytes_mut(&mut frame),
                    );
                    true
                } else {
                    false
                }
            }
            What::Tcp(segment, bytes) => self.serve(flow, segment, bytes, latency, now, &mut frame),
        };
        let Ports { memory, pods, .. } = &mut *self.ports;
        if answer {
            push(
                pods,
                memory,
                frame,
                &mut self.tally.back.sent,
                &mut self.tally.unanswered,
            );
        } else {
            memory.free(frame);
        }
    }

    /// A segment for a pod; whether `frame` is the answer now.
    fn serve(
        &mut self,
        flow: usize,
        segment: Segment,
        bytes: u32,
        latency: u64,
        now: u64,
        frame: &mut Frame,
    ) -> bool {
        let Some(heard) = self.heard.get_mut(flow) else {
            self.tally.foreign += 1;
            return false;
        };
        let syn = segment.flags & super::template::flag::SYN != 0;
        let again = if syn {
            heard.began == segment.times[0].wrapping_add(1)
        } else {
            segment.sequence <= heard.place
        };
        if again {
            self.tally.forward.duplicates += 1;
            return false;
        }
        if syn {
            heard.began = segment.times[0].wrapping_add(1);
        }
        heard.place = segment.sequence;
        self.tally.forward.count(latency);
        let Some(answer) = lives::answer(segment, bytes, time(now)) else {
            return false;
        };
        let frame = self.ports.memory.bytes_mut(frame);
        let family = self.traffic.world.family();
        turn_round(family, frame);
        answer.put(&mut frame[family.l4()..]);
        let end = family.end(frame);
        seal_tcp(family, frame, end);
        true
    }

    /// A frame that came back to the clients.
    fn at_clients(&mut self, frame: Frame, now: u64) {
        let judgement = self.judge(now).at_clients(self.ports.memory.bytes(&frame));
        let Judgement::Right(arrived) = judgement else {
            return self.refuse(frame, judgement, true);
        };
        self.ports.memory.free(frame);
        let latency = now.saturating_sub(arrived.due);
        match arrived.what {
            What::Udp(sequence) => {
                self.tally.back.arrived(arrived.flow, sequence, latency);
            }
            What::Tcp(segment, bytes) => self.go_on(arrived.flow, segment, bytes, latency, now),
        }
    }

    /// A segment for a client, which goes on with its connection.
    fn go_on(&mut self, flow: u32, segment: Segment, bytes: u32, latency: u64, now: u64) {
        let Some(life) = self.lives.get_mut(flow as usize) else {
            self.tally.foreign += 1;
            return;
        };
        let act = life.hear(self.traffic.tcp.script, segment, bytes, now, time(now));
        if act == Act::Ignore {
            self.tally.back.duplicates += 1;
            return;
        }
        self.tally.back.count(latency);
        match act {
            Act::Send(segment) => self.send(flow, segment, false, now),
            Act::Ask(segment) => self.send(flow, segment, true, now),
            Act::Finish(segment, after) => {
                self.live -= 1;
                self.tally.lives.finished += 1;
                self.tally.lives.length.saturating_record(after);
                self.send(flow, segment, false, now);
            }
            Act::Ignore => {}
        }
    }

    /// Begins what is due.
    fn start(&mut self, due: u64, now: u64) {
        let Traffic {
            picks, mix, flows, ..
        } = &mut *self.traffic;
        let kind = if mix.1.len() == 1 {
            0
        } else {
            mix.0.pick(&mut self.random)
        };
        let flow = picks.next(*flows as usize, &mut self.random);
        match &self.traffic.mix.1[kind] {
            Kind::Udp(template) => {
                let Some(mut frame) = room(&mut self.ports.memory, template) else {
                    self.tally.unsent += 1;
                    return;
                };
                let sequence = &mut self.sent[flow];
                let stamp = Stamp {
                    trial: self.number,
                    flow: flow as u32,
                    sequence: *sequence,
                    due,
                };
                *sequence += 1;
                let world = &self.traffic.world;
                let (from, to) = (world.client(flow as u32), world.frontend(flow as u32));
                template.write_udp(self.ports.memory.bytes_mut(&mut frame), from, to, stamp);
                self.ports.clients.out.push(frame);
            }
            Kind::Life => self.open(flow, due, now),
        }
    }

    /// Opens a connection on a flow that has none, this one or one near it.
    fn open(&mut self, flow: usize, due: u64, now: u64) {
        let flows = self.lives.len();
        let idle = (0..TRIED.min(flows))
            .map(|step| (flow + step) % flows)
            .find(|flow| self.lives[*flow].is_idle());
        let Some(flow) = idle else {
            self.tally.unsent += 1;
            return;
        };
        self.live += 1;
        self.tally.lives.started += 1;
        let segment = self.lives[flow].begin(flow as u32, due, time(due));
        self.send(flow as u32, segment, false, now);
    }

    fn send(&mut self, flow: u32, segment: Segment, request: bool, now: u64) {
        let Traffic { tcp, world, .. } = &*self.traffic;
        let template = if request { &tcp.request } else { &tcp.empty };
        let Some(mut frame) = room(&mut self.ports.memory, template) else {
            self.tally.unsent += 1;
            return;
        };
        let stamp = Stamp {
            trial: self.number,
            flow,
            sequence: segment.sequence,
            due: now,
        };
        let (from, to) = (world.client(flow), world.frontend(flow));
        template.write_tcp(self.ports.memory.bytes_mut(&mut frame), from, to, segment, stamp);
        let Ports { memory, clients, .. } = &mut *self.ports;
        push(
            clients,
            memory,
            frame,
            &mut self.tally.forward.sent,
            &mut self.tally.unsent,
        );
    }

    /// Gives up connections that have waited too long.
    fn look_after(&mut self, now: u64) {
        if self.live == 0 {
            return;
        }
        for _ in 0..LOOKED_AT.min(self.lives.len()) {
            self.look = (self.look + 1) % self.lives.len();
            if self.lives[self.look].give_up(now, self.traffic.tcp.patience) {
                self.live -= 1;
                self.tally.lives.failed += 1;
            }
        }
    }

    /// A frame that is not right: a wrong one is counted, a question for a neighbour answered, the rest forgotten.
    #[cold]
    fn refuse(&mut self, mut frame: Frame, judgement: Judgement, back: bool) {
        let Ports {
            memory,
            clients,
            pods,
        } = &mut *self.ports;
        let (side, sent) = if back {
            (clients, &mut self.tally.forward.sent)
        } else {
            (pods, &mut self.tally.back.sent)
        };
        if let Judgement::Wrong(wrong) = judgement {
            self.tally.wrong(back, wrong, memory.bytes(&frame));
        } else if neighbours::answer(memory, &mut frame, side.driver.info().mac) {
            // Alone, since it is no packet of the trial.
            *sent += side.flush(memory);
            if side.out.is_empty() {
                side.out.push(frame);
                side.flush(memory);
                side.out.drain(..).for_each(|frame| memory.free(frame));
                return;
            }
        } else {
            self.tally.foreign += 1;
        }
        memory.free(frame);
    }
}

/// TCP's time.
#[inline]
const fn time(now: u64) -> u32 {
    (now / TIME_UNIT) as u32
}

/// A frame of the template's length.
#[inline]
fn room(memory: &mut FrameMemory, template: &Template) -> Option<Frame> {
    let mut frame = memory.alloc()?;
    if memory.set_len(&mut frame, template.len()) {
        return Some(frame);
    }
    memory.free(frame);
    None
}

/// Puts a frame in line, making room by sending; without room it is counted and gone.
#[inline]
fn push(side: &mut Side, memory: &mut FrameMemory, frame: Frame, sent: &mut u64, refused: &mut u64) {
    if side.out.is_full() {
        *sent += side.flush(memory);
    }
    if let Err(full) = side.out.try_push(frame) {
        memory.free(full.element());
        *refused += 1;
    }
}

/// The packet's way back: who sent it gets it, with a fresh number of hops. UDP's and TCP's sums stay as they are.
#[inline]
fn turn_round(family: Family, frame: &mut [u8]) {
    let (to, rest) = frame.split_at_mut(6);
    to.swap_with_slice(&mut rest[..6]);
    let (addresses, l4) = (family.addresses(), family.l4());
    for pair in [addresses, l4..l4 + l4::PORTS] {
        let half = pair.len() / 2;
        let (source, destination) = frame[pair].split_at_mut(half);
        source.swap_with_slice(destination);
    }
    frame[family.hops()] = 64;
    if family == Family::V4 {
        frame[IP_CHECKSUM..IP_CHECKSUM + 2].fill(0);
        let checksum = !fold(words(&frame[IP..l4]));
        frame[IP_CHECKSUM..IP_CHECKSUM + 2].copy_from_slice(&checksum.to_be_bytes());
    }
}

#[cfg(test)]
#[path = "trial_tests.rs"]
mod tests;
