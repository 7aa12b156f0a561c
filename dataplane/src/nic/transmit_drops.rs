//! What the kernel wanted to send by an interface and dropped: for a tap, the packets that were not read in time.
//!
//! Takes  the kernel's table of interfaces, which is shown without waiting for those who change interfaces, as a question
//!        over netlink does wait.
//! Gives  the count to the driver, which may look at it at any time.
//! Never  is refreshed by a worker: the table has a line for every interface of the node.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::interface::Interface;

/// Of this thread's network namespace, and of no other once it is open.
const TABLE: &str = "/proc/thread-self/net/dev";

/// What refreshes the count.
#[derive(Debug)]
pub struct TransmitDrops {
    table: File,
    interface: Interface,
    count: Arc<AtomicU64>,
}

impl TransmitDrops {
    /// For one interface of this thread's network namespace. Errors: NotFound; `/proc` is not there.
    pub(crate) fn of(interface: &str) -> io::Result<Self> {
        Ok(Self {
            table: File::open(TABLE)?,
            interface: Interface::find(interface)?,
            count: Arc::default(),
        })
    }

    /// The count since the interface exists, as of the last refresh.
    pub(crate) fn count(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.count)
    }

    /// Reads it anew. That of an interface that is gone stays.
    pub fn refresh(&self) {
        if let Ok(Some(count)) = self.read() {
            self.count.store(count, Ordering::Relaxed);
        }
    }

    fn read(&self) -> io::Result<Option<u64>> {
        let name = self.interface.name_now()?;
        let mut text = String::new();
        let mut table = &self.table;
        table.rewind()?;
        table.read_to_string(&mut text)?;
        Ok(transmit_drops(&text, &name))
    }
}

/// proc(5): a line an interface, `name: ` and eight numbers of receiving, then those of sending: bytes, packets, errs, drop.
fn transmit_drops(table: &str, name: &str) -> Option<u64> {
    const DROP: usize = 8 + 3;
    let numbers = table.lines().find_map(|line| {
        let (of, numbers) = line.split_once(':')?;
        (of.trim_start() == name).then_some(numbers)
    });
    numbers?.split_whitespace().nth(DROP)?.parse().ok()
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    #[test]
    fn the_fourth_number_of_sending_is_the_count_of_the_interface_with_that_very_name() {
        let table = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:      10       1    0    0    0     0          0         0       10       1    0    0    0     0       0          0
  tap00:     20       2    0    3    0     0          0         0       30       4    0    5    0     0       0          0
   tap0:     60       7    0    8    0     0          0         0       90      10    0   11    0     0       0          0
";
        assert_eq!(transmit_drops(table, "tap0"), Some(11));
        assert_eq!(transmit_drops(table, "tap00"), Some(5));
        assert_eq!(transmit_drops(table, "tap"), None);
    }

    #[test]
    fn the_kernels_own_table_is_read() {
        let lo = TransmitDrops::of("lo").unwrap();
        assert!(lo.read().unwrap().is_some());
        assert_eq!(
            TransmitDrops::of("no-such-if0").unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
