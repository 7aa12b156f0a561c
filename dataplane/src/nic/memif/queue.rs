//! A queue's two ends as a port uses them, whether packets are copied (`ring`) or frames are lent (`lend`).

use super::lend::{LentRx, LentTx};
use super::ring::{Broken, Received, RxRing, Sent, TxRing};
use crate::nic::{Burst, FrameMemory};

/// Packets to us.
#[derive(Debug)]
pub enum Rx {
    /// Out of buffers of the link's.
    Copying(RxRing),
    /// In frames of ours.
    Lending(LentRx),
}

/// Packets from us.
#[derive(Debug)]
pub enum Tx {
    /// Into buffers of the link's.
    Copying(TxRing),
    /// In frames of ours.
    Lending(LentTx),
}

impl Rx {
    /// Begins to receive. Before it nothing comes.
    pub fn begin(&mut self, memory: &mut FrameMemory) {
        if let Self::Lending(rx) = self {
            rx.top_up(memory);
        }
    }

    /// Whether there are packets.
    pub(super) fn ready(&self) -> Result<u16, Broken> {
        match self {
            Self::Copying(rx) => rx.ready(),
            Self::Lending(rx) => rx.ready(),
        }
    }

    /// Whether the peer shall interrupt us for the next packet.
    pub(super) fn want_interrupt(&self, wanted: bool) {
        match self {
            Self::Copying(rx) => rx.want_interrupt(wanted),
            Self::Lending(rx) => rx.want_interrupt(wanted),
        }
    }

    /// Appends received packets, at most as many as `frames` has room for and `memory` has frames; others wait.
    #[inline(always)]
    pub fn receive(
        &mut self,
        memory: &mut FrameMemory,
        frames: &mut Burst,
        received: &mut Received,
    ) -> Result<(), Broken> {
        match self {
            Self::Copying(rx) => rx.receive(memory, frames, received),
            Self::Lending(rx) => rx.receive(memory, frames, received),
        }
    }

    /// Gives back frames that it holds. It is used no more.
    pub fn end(&mut self, memory: &mut FrameMemory) {
        if let Self::Lending(rx) = self {
            rx.free_all(memory);
        }
    }
}

impl Tx {
    /// Frees frames that the peer is done with.
    #[inline(always)]
    pub fn reclaim(&mut self, memory: &mut FrameMemory) -> Result<(), Broken> {
        match self {
            Self::Copying(_) => Ok(()),
            Self::Lending(tx) => tx.reclaim(memory),
        }
    }

    /// Sends frames from the front of `frames`, which are freed at once or when the peer is done with them; those there is no
    /// room for stay.
    #[inline(always)]
    pub fn send(
        &mut self,
        memory: &mut FrameMemory,
        frames: &mut Burst,
        sent: &mut Sent,
    ) -> Result<(), Broken> {
        match self {
            Self::Copying(tx) => tx.send(memory, frames, sent),
            Self::Lending(tx) => tx.send(memory, frames, sent),
        }
    }

    /// As of `Rx`.
    pub fn end(&mut self, memory: &mut FrameMemory) {
        if let Self::Lending(tx) = self {
            tx.free_all(memory);
        }
    }
}
