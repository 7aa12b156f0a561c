//! Files instead of a NIC: packets received are those of a recording, packets sent become one. For replays, for golden
//! files, and for looking into what a gateway would do; not the fast path: it reads and writes files between bursts.
//!
//! At full speed (the default) a recording is read as fast as the worker turns, or at the pace it was recorded in. A file
//! that grows is followed, a folder watched for more files (`source`). Nobody at the other side answers ARP, so there is one
//! station, `peer_mac`, behind which everybody is.
//!
//! A packet that was cut by its recorder, or of another link than Ethernet, is counted in `rx_errors`, and so is, once, the
//! rest of a file that makes no sense. A file that cannot be written any more counts all its packets in `tx_errors`, and the
//! port is gone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::epoll;
use rustix::time::{
    ClockId, Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, clock_gettime,
    timerfd_create, timerfd_settime,
};

use super::open::PortSpec;
use super::tap::station_mac;
use super::{BURST, Burst, Driver, DriverInfo, DriverStats, FrameMemory, Link, OpenError, checksum_fix};
use crate::addr::Mac;
use sink::Sink;
use source::{Next, Source};

pub mod records;
mod sink;
mod source;

/// Largest IP packet sent, in bytes: a file has no limit, but what reads it may take it for Ethernet's.
const MTU: usize = 1500;
/// Turns without a look at a file after it had nothing: a look is a system call. Fewer than the empty turns a worker makes
/// before it first waits, and woken it turns until the rest is over.
const REST: u32 = 15;

/// What a pcap port reads and writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PcapSpec {
    /// File or folder of the packets to receive; none: the port receives nothing.
    pub read: Option<PathBuf>,
    /// File for the packets that are sent, pcapng if its name ends so; none: they are dropped, as at a link without peer.
    pub write: Option<PathBuf>,
    /// Receive at the pace of the recording, and note the time of what is sent.
    pub recorded_pace: bool,
    /// The station the port is; none: one made of its name.
    pub mac: Option<Mac>,
    /// The station that everybody is behind; none: one made of its name.
    pub peer_mac: Option<Mac>,
}

/// A port of files.
pub struct Pcap {
    source: Option<Source>,
    sink: Option<Sink>,
    pace: Option<Pace>,
    /// Readable when there is something to receive: news of the source, and the pace's timer.
    wait: OwnedFd,
    rest: u32,
    info: DriverInfo,
    stats: DriverStats,
    complete_checksums: bool,
    /// The sink failed.
    failed: bool,
}

/// When packets are due: recorded times, from the first one on.
struct Pace {
    timer: OwnedFd,
    /// The first packet's time in the recording, and now.
    begin: Option<(Duration, Duration)>,
    /// The timer runs for the packet in front.
    armed: bool,
}

impl Pcap {
    /// Opens what there is to read, and makes the file to write.
    pub(crate) fn open(spec: &PortSpec, options: &PcapSpec) -> Result<Self, OpenError> {
        let source = match &options.read {
            Some(path) => Some(Source::open(path).map_err(|e| {
                let advice = "give a pcap or pcapng file, or a folder of such, that this user may read";
                spec.error(format!("cannot read {}", path.display()), advice, e)
            })?),
            None => None,
        };
        let sink = match &options.write {
            Some(path) => Some(Sink::create(path, options.recorded_pace).map_err(|e| {
                let advice = "choose a file in a folder that exists and that this user may write to";
                spec.error(format!("cannot write {}", path.display()), advice, e)
            })?),
            None => None,
        };
        let paced = source.is_some() && options.recorded_pace;
        let resources = |e| spec.error("cannot make a timer", "raise the limit of open files", e);
        let pace = if paced {
            Some(Pace::new().map_err(resources)?)
        } else {
            None
        };
        let wait = wait_for(source.as_ref(), pace.as_ref()).map_err(resources)?;
        let name = |path: &Option<PathBuf>| {
            path.as_ref()
                .map_or_else(|| "nothing".to_owned(), |path| path.display().to_string())
        };
        let mode = format!(
            "reads {}, writes {}, {}",
            name(&options.read),
            name(&options.write),
            if options.recorded_pace {
                "at the pace of the recording"
            } else {
                "at full speed"
            },
        );
        let peer = || station_mac(&format!("{} peer", spec.interface));
        Ok(Self {
            source,
            sink,
            pace,
            wait,
            rest: 0,
            info: DriverInfo {
                driver: "pcap",
                interface: spec.interface.clone(),
                mode,
                mac: options.mac.unwrap_or_else(|| station_mac(&spec.interface)),
                peer_mac: Some(options.peer_mac.unwrap_or_else(peer)),
                mtu: MTU,
            },
            stats: DriverStats::default(),
            complete_checksums: spec.complete_checksums,
            failed: false,
        })
    }
}

fn wait_for(source: Option<&Source>, pace: Option<&Pace>) -> io::Result<OwnedFd> {
    let wait = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let fds = [source.map(Source::news), pace.map(|pace| pace.timer.as_fd())];
    for fd in fds.into_iter().flatten() {
        epoll::add(&wait, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
    }
    Ok(wait)
}

impl Pace {
    fn new() -> io::Result<Self> {
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC,
        )?;
        Ok(Self {
            timer,
            begin: None,
            armed: false,
        })
    }

    /// Whether the packet in front, recorded at `time`, is due. If not, the timer will tell.
    fn is_due(&mut self, time: Duration) -> bool {
        if !self.armed {
            let (first, start) = *self.begin.get_or_insert_with(|| {
                let now = clock_gettime(ClockId::Monotonic);
                (time, Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32))
            });
            let due = start.saturating_add(time.saturating_sub(first));
            let at = Itimerspec {
                it_interval: Timespec {
                    tv_sec: 0,
                    tv_nsec: 0,
                },
                it_value: Timespec {
                    tv_sec: i64::try_from(due.as_secs()).unwrap_or(i64::MAX),
                    tv_nsec: due.subsec_nanos().into(),
                },
            };
            // What cannot be waited for is due.
            self.armed = timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &at).is_ok();
        }
        let due = !self.armed || rustix::io::read(&self.timer, &mut [0; 8]).is_ok();
        self.armed &= !due;
        due
    }
}

impl Driver for Pcap {
    fn rx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        let Some(source) = &mut self.source else { return };
        if self.rest > 0 {
            self.rest -= 1;
            return;
        }
        // A record each, so that many bad ones do not make a long turn.
        for _ in 0..BURST {
            if frames.is_full() || memory.available() == 0 {
                break;
            }
            let packet = match source.next() {
                Next::Packet(packet) => packet,
                Next::Bad => {
                    self.stats.rx_errors += 1;
                    continue;
                }
                Next::Nothing => {
                    if frames.is_empty() {
                        self.rest = REST;
                    }
                    break;
                }
            };
            if let Some(pace) = &mut self.pace
                && !pace.is_due(packet.time)
            {
                break;
            }
            let frame = memory.copy_in(source.bytes(&packet));
            source.take(&packet);
            let Some(mut frame) = frame else {
                self.stats.rx_errors += 1;
                continue;
            };
            if self.complete_checksums {
                checksum_fix::complete(memory.bytes_mut(&mut frame), &mut self.stats);
            }
            self.stats.rx_packets += 1;
            self.stats.rx_bytes += frame.len() as u64;
            frames.push(frame);
        }
    }

    fn tx_burst(&mut self, memory: &mut FrameMemory, frames: &mut Burst) {
        let (packets, bytes) = (
            frames.len() as u64,
            frames.iter().map(|f| f.len() as u64).sum::<u64>(),
        );
        let written = match &mut self.sink {
            Some(sink) if !self.failed => {
                let put = frames.iter().try_for_each(|frame| sink.put(memory.bytes(frame)));
                put.and_then(|()| sink.flush()).is_ok()
            }
            _ => false,
        };
        self.failed |= !written && self.sink.is_some();
        if written {
            self.stats.tx_packets += packets;
            self.stats.tx_bytes += bytes;
        } else {
            self.stats.tx_errors += packets;
        }
        frames.drain(..).for_each(|frame| memory.free(frame));
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.wait.as_fd())
    }

    fn info(&self) -> &DriverInfo {
        &self.info
    }

    fn stats(&self) -> DriverStats {
        self.stats
    }

    fn link(&self) -> Link {
        if self.failed { Link::Gone } else { Link::Up }
    }
}
