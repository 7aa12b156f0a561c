//! Whole TCP connections, from SYN to the last ACK, each packet made from what the gateway did to the one before it.

use super::packets::{self, Tuple, flags};
use super::{Bench, Error, Figures, ROUND, Workload, verify};

/// Packets of a connection: SYN, SYN and ACK, ACK; FIN, FIN and ACK, ACK.
pub(super) const PACKETS: usize = 6;

impl Bench {
    /// Connections that open and close beside `workload.flows` established ones, in a table with room for a third more:
    /// those that have ended make room for those that begin, as on a gateway at its limit (CT-18).
    pub(super) fn lives(&mut self, workload: &Workload) -> Result<Figures, Error> {
        for first in (0..workload.flows).step_by(ROUND) {
            let flows = first..(first + ROUND).min(workload.flows);
            self.life(flows, false)?;
        }
        // All of a batch are open at one time.
        let batch = ROUND.min((self.setup.flows - workload.flows) / 2);
        let mut flow = workload.flows;
        let mut figures = Figures::default();
        for _ in 0..workload.repeats {
            let (mut spent, mut done) = (0, 0);
            while done < workload.packets {
                spent += self.life(flow..flow + batch, true)?;
                flow += batch;
                done += batch * PACKETS;
            }
            figures.ns.push(spent as f64 / done as f64);
        }
        Ok(figures)
    }

    /// Opens these connections, and closes them if they are to end; the nanoseconds of the gateway's turns.
    fn life(&mut self, flows: std::ops::Range<usize>, ends: bool) -> Result<u64, Error> {
        let clients: Vec<Tuple> = flows.map(|flow| packets::tuple(&self.setup, flow)).collect();
        self.feed.keep_sent(false, true);
        let mut spent = self.step(&clients, false, flags::SYN)?;
        let sent = self.feed.sent(false);
        self.feed.keep_sent(false, false);
        if sent.len() != clients.len() {
            return Err(format!("{} of {} connections opened", sent.len(), clients.len()).into());
        }
        let mut endpoints = Vec::with_capacity(clients.len());
        for (mark, packet) in verify::in_order(&sent)?.into_iter().enumerate() {
            let (before, after) = (clients[mark], verify::tuple(packet)?);
            let known = |address| self.endpoints.contains(&address);
            verify::toward_endpoint(before, after, known, self.setup.keep_source)?;
            endpoints.push(after.reversed());
        }
        self.verified += clients.len();
        spent += self.step(&endpoints, true, flags::SYN | flags::ACK)?;
        spent += self.step(&clients, false, flags::ACK)?;
        if ends {
            spent += self.step(&clients, false, flags::FIN | flags::ACK)?;
            spent += self.step(&endpoints, true, flags::FIN | flags::ACK)?;
            spent += self.step(&clients, false, flags::ACK)?;
        }
        Ok(spent)
    }

    fn step(&mut self, tuples: &[Tuple], replies: bool, tcp_flags: u8) -> Result<u64, Error> {
        self.load(replies, tuples.iter().map(|&tuple| (tuple, tcp_flags)))?;
        Ok(self.time(tuples.len()))
    }
}
