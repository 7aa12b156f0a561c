use super::*;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

fn memfd(flags: MemfdFlags, len: u64) -> OwnedFd {
    let file = memfd_create("test", flags | MemfdFlags::CLOEXEC).unwrap();
    ftruncate(&file, len).unwrap();
    file
}

#[test]
fn pages_that_a_peer_takes_away_are_zeroes_and_no_other_region_is_touched() {
    let bytes = [7; 64];
    let file = || memfd(MemfdFlags::empty(), 1 << 20);
    let (cut, kept) = (file(), file());
    let [one, other] = [&cut, &kept].map(|file| Region::adopt(file.try_clone().unwrap(), 1 << 20).unwrap());
    for at in [0, 4096, (1 << 20) - 64] {
        one.buffer(at, 64).unwrap().write(&bytes);
        other.buffer(at, 64).unwrap().write(&bytes);
    }
    ftruncate(&cut, 4096).unwrap();
    let read = |region: &Region, at| {
        let mut to = [1; 64];
        region.buffer(at, 64).unwrap().read(&mut to);
        to
    };
    assert_eq!((read(&one, 0), one.is_lost()), (bytes, false));
    assert_eq!((read(&one, 8192), one.is_lost()), ([0; 64], true));
    assert_eq!(read(&one, 0), [0; 64], "all of it is ours now");
    one.buffer((1 << 20) - 64, 64).unwrap().write(&bytes);
    assert_eq!(read(&one, (1 << 20) - 64), bytes);
    for at in [0, 4096, (1 << 20) - 64] {
        assert_eq!(read(&other, at), bytes);
    }
    assert!(!other.is_lost());
}

#[test]
fn a_file_that_is_no_memory_is_refused() {
    for path in ["/dev/null", "/dev/zero", "/proc/self/mem", "/proc/self/stat"] {
        let file = rustix::fs::open(path, rustix::fs::OFlags::RDWR, rustix::fs::Mode::empty())
            .or_else(|_| rustix::fs::open(path, rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()));
        let refused = Region::adopt(file.unwrap(), 4096);
        assert!(
            matches!(refused, Err(RegionError::NoMemory)),
            "{path}: {refused:?}"
        );
    }
}

#[test]
fn a_region_longer_than_its_file_is_refused() {
    for (file, said) in [(4096, 4097), (0, 1), (4096, u64::MAX), (4096, 0)] {
        let file = memfd(MemfdFlags::ALLOW_SEALING, file);
        assert!(
            matches!(
                Region::adopt(file, said),
                Err(RegionError::Short(_)) | Err(RegionError::Map(_))
            ),
            "{said}"
        );
    }
}

#[test]
fn bytes_go_in_and_out_at_any_place_and_length_and_touch_nothing_else() {
    let region = Region::create(4096).unwrap();
    let whole = |byte| region.buffer(0, 256).unwrap().write(&[byte; 256]);
    for offset in 0..17 {
        for len in 0..70 {
            whole(0xee);
            let bytes: Vec<u8> = (0..len as u8).collect();
            region.buffer(offset, len).unwrap().write(&bytes);
            let mut back = vec![0; len as usize];
            region.buffer(offset, len).unwrap().read(&mut back);
            assert_eq!(back, bytes);
            let mut around = vec![0; 256];
            region.buffer(0, 256).unwrap().read(&mut around);
            let kept = around.iter().filter(|&&byte| byte == 0xee).count();
            assert_eq!(kept, 256 - len as usize, "{len} bytes at {offset}");
        }
    }
}

#[test]
fn what_is_not_in_the_region_is_no_buffer_and_no_ring() {
    let regions: Arc<[Region]> = [Region::create(4096).unwrap()].into();
    let region = &regions[0];
    assert!(region.buffer(4096, 0).is_some() && region.buffer(4095, 1).is_some());
    for (offset, len) in [(4096, 1), (4095, 2), (u32::MAX, u32::MAX), (0, u32::MAX)] {
        assert!(region.buffer(offset, len).is_none(), "{len} at {offset}");
    }
    assert!(
        Ring::at(&regions, 0, 3840, 3).is_some(),
        "its last byte is the region's"
    );
    for (region, offset, log2_size) in [
        (0, 3848, 3),
        (0, 4, 3),
        (1, 0, 3),
        (0, 0, 8),
        (0, 0, 16),
        (0, u32::MAX - 7, 0),
    ] {
        assert!(Ring::at(&regions, region, offset, log2_size).is_none());
    }
}
