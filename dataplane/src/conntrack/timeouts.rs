//! How long a flow may be idle, by protocol and state (the table in section 4 of the semantics, kube-proxy's overrides
//! included). A packet in either direction starts the time anew (CT-20).

use super::flow::{Flow, State};
use crate::addr::{Address, Protocol};
use crate::tick::TICKS_PER_SECOND;

/// A replied UDP flow younger than this still has the short timeout: a query and its answer are no stream.
const UDP_STREAM_AGE: u32 = seconds(2);

/// Idle timeouts in ticks (`tick::ticks` makes them from durations). A flow expires when it was idle for longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP SYN_SENT and SYN_SENT2.
    pub tcp_syn_sent: u32,
    /// TCP SYN_RECV.
    pub tcp_syn_recv: u32,
    /// TCP ESTABLISHED.
    pub tcp_established: u32,
    /// TCP FIN_WAIT.
    pub tcp_fin_wait: u32,
    /// TCP CLOSE_WAIT.
    pub tcp_close_wait: u32,
    /// TCP LAST_ACK.
    pub tcp_last_ack: u32,
    /// TCP TIME_WAIT.
    pub tcp_time_wait: u32,
    /// TCP CLOSE.
    pub tcp_close: u32,
    /// UDP without a reply, and replied flows whose last packet came within 2 s of the first.
    pub udp: u32,
    /// UDP with a reply and with a packet later than that.
    pub udp_stream: u32,
    /// SCTP without a reply. Chunks are not read, so all states before the reply share one.
    pub sctp_unreplied: u32,
    /// SCTP with a reply.
    pub sctp_established: u32,
    /// ICMP and ICMPv6.
    pub icmp: u32,
    /// Any other protocol.
    pub other: u32,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_syn_sent: seconds(120),
            tcp_syn_recv: seconds(60),
            tcp_established: seconds(86_400),
            tcp_fin_wait: seconds(120),
            tcp_close_wait: seconds(3600),
            tcp_last_ack: seconds(30),
            tcp_time_wait: seconds(120),
            tcp_close: seconds(10),
            udp: seconds(30),
            udp_stream: seconds(120),
            // HEARTBEAT_SENT's: INIT is retransmitted after 1, 2, 4 and 8 s (RFC 9260 §6.3), longer than Linux' 3 s.
            sctp_unreplied: seconds(30),
            sctp_established: seconds(210),
            icmp: seconds(30),
            other: seconds(600),
        }
    }
}

impl Timeouts {
    /// Ticks that `flow` may be idle.
    pub fn idle<A: Address>(&self, flow: &Flow<A>) -> u32 {
        match flow.state() {
            State::Free => 0,
            State::SynSent | State::SynSent2 => self.tcp_syn_sent,
            State::SynRecv => self.tcp_syn_recv,
            State::Established => self.tcp_established,
            State::FinWait => self.tcp_fin_wait,
            State::CloseWait => self.tcp_close_wait,
            State::LastAck => self.tcp_last_ack,
            State::TimeWait => self.tcp_time_wait,
            State::Close => self.tcp_close,
            state @ (State::Unreplied | State::Replied) => match (flow.protocol(), state) {
                (Protocol::UDP, State::Replied) if flow.last_seen().since(flow.opened()) > UDP_STREAM_AGE => {
                    self.udp_stream
                }
                (Protocol::UDP, _) => self.udp,
                (Protocol::SCTP, State::Replied) => self.sctp_established,
                (Protocol::SCTP, _) => self.sctp_unreplied,
                (Protocol::ICMP | Protocol::ICMPV6, _) => self.icmp,
                _ => self.other,
            },
        }
    }
}

const fn seconds(seconds: u32) -> u32 {
    seconds * TICKS_PER_SECOND
}
