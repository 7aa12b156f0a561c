//! A hostile netmap module, or whoever shares its memory: words anywhere in descriptions, rings and slots, at open and at every
//! sync. No frame is lost, and none is two.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex};

use rustix::fs::{MemfdFlags, memfd_create};
use sluice_dataplane::nic::netmap::Netmap;
use sluice_dataplane::nic::netmap::abi::{Device, Devices, NR_REG_NULL, Register};
use sluice_dataplane::nic::open::{DriverSpec, PortSpec};
use sluice_dataplane::nic::{Burst, Driver as _, FrameMemory};

use crate::bytes::Bytes;

/// Frames of the worker, all of them lent.
const FRAMES: u32 = 32;
const SLOTS: u32 = 16;
/// Where what is; buffers of 2048 bytes.
const INTERFACES: [u32; 2] = [0, 1024];
const TX: u32 = 4096;
const RX: u32 = 8192;
const BUFFERS: u32 = 16_384;
const COUNT: u32 = 2 + 2 * SLOTS + FRAMES;
const SIZE: u32 = BUFFERS + COUNT * 2048;

/// The memory, and what will be written into it.
struct Module {
    memory: File,
    rest: Mutex<Vec<u8>>,
}

impl Module {
    fn write(&self, at: u32, word: u32) {
        self.memory.write_all_at(&word.to_ne_bytes(), at.into()).unwrap();
    }

    /// A sound memory: one ring each way, and a list of buffers.
    fn new(data: &[u8]) -> Self {
        let memory = File::from(memfd_create("fuzz", MemfdFlags::CLOEXEC).unwrap());
        memory.set_len(SIZE.into()).unwrap();
        let module = Self {
            memory,
            rest: Mutex::new(data.to_vec()),
        };
        for interface in INTERFACES {
            // ni_tx_rings, ni_rx_rings, ni_bufs_head, ni_host_tx_rings, ni_host_rx_rings.
            for (field, word) in [(24, 1), (28, 1), (36, 1), (40, 1)] {
                module.write(interface + field, word);
            }
            // ring_ofs: tx, host tx, rx, host rx.
            module.write(interface + 56, TX - interface);
            module.write(interface + 72, RX - interface);
        }
        for (ring, first, tail) in [(TX, 2, SLOTS - 1), (RX, 2 + SLOTS, SLOTS / 2)] {
            // buf_ofs, num_slots, nr_buf_size, tail.
            for (field, word) in [(0, BUFFERS - ring), (8, SLOTS), (12, 2048), (28, tail)] {
                module.write(ring + field, word);
            }
            for slot in 0..SLOTS {
                module.write(ring + 256 + 16 * slot, first + slot);
                module.write(ring + 260 + 16 * slot, 60);
            }
        }
        let list = 2 + 2 * SLOTS..COUNT;
        module.write(INTERFACES[1] + 32, list.start);
        for buffer in list.clone() {
            let next = if buffer + 1 < list.end { buffer + 1 } else { 0 };
            module.write(BUFFERS + buffer * 2048, next);
        }
        module
    }

    /// Some words at some places, mostly such that mean something.
    fn scribble(&self) {
        let mut rest = self.rest.lock().unwrap();
        let mut bytes = Bytes(&rest);
        for _ in 0..bytes.below(8) {
            let base = bytes.one_of(&[TX, RX, TX + 256, RX + 256, INTERFACES[0], INTERFACES[1], BUFFERS]);
            let at = base + 4 * u32::from(bytes.byte());
            let word = match bytes.below(4) {
                0 => u32::from(bytes.byte()),
                1 => u32::from(bytes.word()) << 16 | u32::from(bytes.word()),
                2 => u32::MAX - u32::from(bytes.byte()),
                _ => COUNT - 4 + u32::from(bytes.byte() % 8),
            };
            self.write(at, word);
        }
        let left = bytes.0.to_vec();
        *rest = left;
    }
}

/// A control device of it.
struct Control(Arc<Module>);

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Control")
    }
}

impl Devices for Control {
    fn open(&self) -> io::Result<Box<dyn Device>> {
        Ok(Box::new(Self(Arc::clone(&self.0))))
    }
}

impl Device for Control {
    fn register(&self, _: &str, request: &mut Register) -> io::Result<()> {
        let interface = INTERFACES[usize::from(request.mode == NR_REG_NULL)];
        (request.offset, request.memsize, request.mem_id) = (interface.into(), SIZE.into(), 1);
        self.0.scribble();
        Ok(())
    }

    fn sync_tx(&self) -> io::Result<()> {
        self.0.scribble();
        Ok(())
    }

    fn sync_rx(&self) -> io::Result<()> {
        self.0.scribble();
        Ok(())
    }

    fn memory(&self) -> BorrowedFd<'_> {
        self.0.memory.as_fd()
    }

    fn readable(&self) -> BorrowedFd<'_> {
        self.0.memory.as_fd()
    }
}

pub(crate) fn run(data: &[u8]) {
    let module = Arc::new(Module::new(data));
    let mut memory = FrameMemory::new(FRAMES as usize, 2048).unwrap();
    let spec = PortSpec::new("fuzz", "vale0:fuzz@1", DriverSpec::Netmap);
    let devices: Arc<dyn Devices> = Arc::new(Control(module));
    let opened = Netmap::open_by(&spec, &mut memory, &devices);
    assert_eq!(memory.available(), memory.capacity());
    let Ok(mut port) = opened.map(Box::new) else {
        return;
    };
    for turn in 0..64 {
        let copies = (0..turn % 16).map_while(|n| memory.copy_in(&vec![n as u8; 40 * n + turn]));
        let mut frames: Burst = copies.collect();
        port.tx_burst(&mut memory, &mut frames);
        frames.drain(..).for_each(|frame| memory.free(frame));
        port.rx_burst(&mut memory, &mut frames);
        let mut places: Vec<_> = frames
            .iter()
            .map(|f| memory.bytes(f).as_ptr().addr() / 2048)
            .collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), frames.len(), "two frames are one");
        for frame in &mut frames {
            memory.bytes_mut(frame).fill(turn as u8);
        }
        frames.drain(..).for_each(|frame| memory.free(frame));
        port.owes();
        port.link();
        assert_eq!(memory.available(), memory.capacity(), "a frame for a frame");
    }
    port.close(&mut memory);
    assert_eq!(memory.available(), FRAMES as usize);
}
