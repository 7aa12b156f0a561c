//! Takes  a worker with nothing to do, and whom its turn has written to.   Gives  the core to others until there is something.
//! Never  sleeps while a driver has packets under way that only another turn sends for longer than those may wait.

use std::time::Duration;

use arrayvec::ArrayVec;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::sockopt;

use super::{Shared, Worker};

/// Longest sleep of a worker with nothing to do: flows still expire, and a driver without a wait descriptor is polled.
pub(super) const SLEEP: Duration = Duration::from_millis(100);

/// Longest sleep of a worker that has packets under way which only another turn sends: a retransmission timer is 200 ms, and
/// an interface that was full has room again after as many packets.
pub(super) const OWING: Duration = Duration::from_millis(1);

impl Worker {
    /// Wakes whom this turn has written to.
    pub(super) fn wake(&mut self, shared: &Shared) {
        if std::mem::take(&mut self.ring_steward) {
            shared.steward.ring();
        }
        let mut rung = std::mem::take(&mut self.rung) & !(1 << self.index.0);
        if !shared.sleep {
            return; // nobody waits on a bell, and a ring is a system call
        }
        while rung != 0 {
            shared.workers[rung.trailing_zeros() as usize].ring();
            rung &= rung - 1;
        }
    }

    /// How long it may sleep.
    pub(super) fn patience(&mut self) -> Duration {
        let owes = self.ports.iter_mut().flatten().any(|nic| nic.driver.owes());
        if owes { OWING } else { SLEEP }
    }

    /// Waits for a packet, a letter, a newer table, or as long as it may.
    pub(super) fn wait(&mut self, shared: &Shared) {
        let patience = self.patience();
        let mailbox = &shared.workers[self.index.get()];
        let mut fds: ArrayVec<PollFd<'_>, 257> = ArrayVec::new_const();
        fds.push(PollFd::from_borrowed_fd(mailbox.bell(), PollFlags::IN));
        for fd in self.ports.iter().flatten().filter_map(|nic| nic.driver.wait_fd()) {
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
        let timeout = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: patience.as_nanos() as i64,
        };
        // EINTR is a wake-up like any other.
        let _ = poll(&mut fds, Some(&timeout));
        let broken = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        let mut lost = false;
        for fd in fds.iter().filter(|fd| fd.revents().intersects(broken)) {
            // Reading a socket's error clears it (a link that went down); what stays broken would wake us for ever.
            lost |= sockopt::socket_error(fd).is_err();
        }
        if lost {
            // poll(2) no longer waits, and a worker that idles must not take the core: one look a millisecond.
            std::thread::sleep(Duration::from_millis(1));
        }
        mailbox.quiet();
    }
}
