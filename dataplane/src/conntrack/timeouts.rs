//! How long a flow may be idle, by protocol and state (the table in section 4 of the semantics, kube-proxy's overrides
//! included). A packet in either direction starts the time anew (CT-20).
//!
//! The table's row for retransmitted and unacknowledged TCP data is not here: windows and sequence numbers are not
//! tracked (CT-14), so nobody knows what is unacknowledged. What was found midway and never answered has its 300 s.

use serde::Deserialize;

use super::flow::Flow;
use super::state::State;
use crate::addr::{Address, Protocol};
use crate::tick::{Period, TICKS_PER_SECOND};

/// A replied UDP flow younger than this still has the short timeout: a query and its answer are no stream.
const UDP_STREAM_AGE: u32 = 2 * TICKS_PER_SECOND;

macro_rules! timeouts {
    ($($(#[$doc:meta])* $name:ident = $seconds:literal,)*) => {
        /// Idle timeouts, named in the config as here. A flow expires when it was idle for longer.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
        #[serde(rename_all = "camelCase", deny_unknown_fields, default)]
        pub struct Timeouts { $($(#[$doc])* pub $name: Period,)* }

        impl Timeouts {
            fn all(&self) -> Vec<Period> {
                vec![$(self.$name,)*]
            }
        }

        impl Default for Timeouts {
            fn default() -> Self {
                Self { $($name: Period::from_seconds($seconds),)* }
            }
        }
    };
}

timeouts! {
    /// TCP SYN_SENT and SYN_SENT2.
    tcp_syn_sent = 120,
    /// TCP SYN_RECV.
    tcp_syn_recv = 60,
    /// TCP ESTABLISHED.
    tcp_established = 86_400,
    /// TCP found midway, not answered yet.
    tcp_midstream = 300,
    /// TCP FIN_WAIT.
    tcp_fin_wait = 120,
    /// TCP CLOSE_WAIT.
    tcp_close_wait = 3600,
    /// TCP LAST_ACK.
    tcp_last_ack = 30,
    /// TCP TIME_WAIT.
    tcp_time_wait = 120,
    /// TCP CLOSE.
    tcp_close = 10,
    /// UDP without a reply, and replied flows whose last packet came within 2 s of the first.
    udp = 30,
    /// UDP with a reply and with a packet later than that.
    udp_stream = 120,
    /// SCTP CLOSED.
    sctp_closed = 10,
    /// SCTP COOKIE_WAIT.
    sctp_cookie_wait = 3,
    /// SCTP COOKIE_ECHOED.
    sctp_cookie_echoed = 3,
    /// SCTP ESTABLISHED.
    sctp_established = 210,
    /// SCTP SHUTDOWN_SENT.
    sctp_shutdown_sent = 3,
    /// SCTP SHUTDOWN_RECD.
    sctp_shutdown_recd = 3,
    /// SCTP SHUTDOWN_ACK_SENT.
    sctp_shutdown_ack_sent = 3,
    /// SCTP HEARTBEAT_SENT.
    sctp_heartbeat_sent = 30,
    /// ICMP and ICMPv6.
    icmp = 30,
    /// Any other protocol.
    other = 600,
}

impl Timeouts {
    /// The longest of all, in ticks.
    pub fn longest(&self) -> u32 {
        self.all()
            .into_iter()
            .map(Period::ticks)
            .max()
            .unwrap_or_default()
    }

    /// Ticks that `flow` may be idle.
    pub fn idle<A: Address>(&self, flow: &Flow<A>) -> u32 {
        let period = match flow.state() {
            State::Free => return 0,
            State::SynSent | State::SynSent2 => self.tcp_syn_sent,
            State::SynRecv => self.tcp_syn_recv,
            State::Established => self.tcp_established,
            State::Midstream => self.tcp_midstream,
            State::FinWait => self.tcp_fin_wait,
            State::CloseWait => self.tcp_close_wait,
            State::LastAck => self.tcp_last_ack,
            State::TimeWait => self.tcp_time_wait,
            State::Close | State::Reset => self.tcp_close,
            State::SctpClosed | State::SctpAborted => self.sctp_closed,
            State::CookieWait => self.sctp_cookie_wait,
            State::CookieEchoed => self.sctp_cookie_echoed,
            State::SctpEstablished => self.sctp_established,
            State::ShutdownSent => self.sctp_shutdown_sent,
            State::ShutdownRecd => self.sctp_shutdown_recd,
            State::ShutdownAckSent => self.sctp_shutdown_ack_sent,
            State::HeartbeatSent => self.sctp_heartbeat_sent,
            state @ (State::Unreplied | State::Replied) => match (flow.protocol(), state) {
                (Protocol::UDP, State::Replied) if flow.last_seen().since(flow.opened()) > UDP_STREAM_AGE => {
                    self.udp_stream
                }
                (Protocol::UDP, _) => self.udp,
                (Protocol::ICMP | Protocol::ICMPV6, _) => self.icmp,
                _ => self.other,
            },
        };
        period.ticks()
    }
}

#[cfg(test)]
#[cfg(feature = "nic")]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_seconds_or_durations_within_bounds_and_the_others_keep_their_defaults() {
        let parse = |text: &str| serde_saphyr::from_str::<Timeouts>(text);
        let expected = Timeouts {
            tcp_established: Period::from_seconds(7200),
            udp: Period::from_seconds(45),
            ..Timeouts::default()
        };
        assert_eq!(parse("{tcpEstablished: 2h, udp: 45}").unwrap(), expected);
        for bad in ["0", "31d", "soon", "-1"] {
            let says = parse(&format!("{{udp: {bad}}}")).unwrap_err().to_string();
            assert!(says.contains("from 1s to 30d"), "{says}");
        }
        assert!(
            parse("{udpTimeout: 3}")
                .unwrap_err()
                .to_string()
                .contains("udpTimeout")
        );
    }
}
