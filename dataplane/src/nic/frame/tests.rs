use super::*;

#[test]
fn frames_run_out_and_come_back() {
    let mut memory = FrameMemory::new(2, 2048).unwrap();
    let a = memory.copy_in(b"one").unwrap();
    let b = memory.copy_in(b"two").unwrap();
    assert!(memory.alloc().is_none());
    assert_eq!((memory.bytes(&a), memory.bytes(&b)), (&b"one"[..], &b"two"[..]));
    memory.free(a);
    assert_eq!(memory.available(), 1);
    memory.free(b);
}

#[test]
fn a_frame_survives_the_trip_through_a_ring_and_lies_are_refused() {
    let mut memory = FrameMemory::new(2, 2048).unwrap();
    let frame = memory.copy_in(b"packet").unwrap();
    let raw = memory.into_raw(frame);
    let frame = memory.from_raw(raw).unwrap();
    assert_eq!(memory.bytes(&frame), b"packet");
    assert!(
        memory
            .from_raw(RawFrame {
                address: 4096,
                len: 1
            })
            .is_none()
    );
    assert!(
        memory
            .from_raw(RawFrame {
                address: 2040,
                len: 9
            })
            .is_none()
    );
    memory.free(frame);
}

/// Memory of four chunks, two of them lent; what came back is told to the test.
#[derive(Debug)]
struct Shelf {
    region: Region,
    returned: Arc<std::sync::Mutex<Vec<u32>>>,
}

impl Lender for Shelf {
    fn region(&self) -> u64 {
        7
    }

    fn take_back(&mut self, chunks: &[u32]) {
        assert!(self.region.len() >= 4 * 2048);
        self.returned.lock().unwrap().extend(chunks);
    }
}

#[test]
fn lent_chunks_are_traded_once_each_and_go_back_at_the_end() {
    let returned = Arc::default();
    let region = Region::anonymous(4 * 2048).unwrap();
    let base = region.base();
    let shelf = Shelf {
        region,
        returned: Arc::clone(&returned),
    };
    // SAFETY: the shelf keeps four chunks mapped, and nobody else uses them.
    let mut memory = unsafe { FrameMemory::lent(base, 2048, 4, vec![0, 1], Box::new(shelf)) };
    assert!(memory.trader(8).is_none() && memory.region().is_none() && memory.is_whole());
    let trader = memory.trader(7).unwrap();
    assert!(!memory.is_whole());
    drop(trader);
    let packet = memory.copy_in(b"packet").unwrap();
    let spare = memory.alloc().unwrap();
    let lies = [0, 1, 4, u32::MAX];
    let spare = lies
        .into_iter()
        .fold(spare, |spare, lie| memory.trade(spare, lie, 60).unwrap_err());
    let spare = memory.trade(spare, 3, 2049).unwrap_err();
    let (received, given) = memory.trade(spare, 3, 60).unwrap();
    assert_eq!((received.len(), given), (60, 0));
    assert_eq!(memory.bytes(&packet), b"packet");
    let mut moved = packet;
    assert!(memory.move_start(&mut moved, -4) && memory.bytes(&moved)[4..] == *b"packet");
    memory.free(moved);
    memory.free(received);
    drop(memory);
    assert_eq!(*returned.lock().unwrap(), [1, 3]);
}

#[test]
fn start_and_length_stay_inside_the_chunk() {
    let mut memory = FrameMemory::new(1, 2048).unwrap();
    let mut frame = memory.copy_in(&[7; 100]).unwrap();
    assert!(memory.move_start(&mut frame, -4) && frame.len() == 104);
    assert!(!memory.move_start(&mut frame, -(HEADROOM as isize)));
    assert!(!memory.move_start(&mut frame, 105));
    assert!(!memory.set_len(&mut frame, 2048));
    assert!(memory.set_len(&mut frame, 60) && frame.len() == 60);
}
