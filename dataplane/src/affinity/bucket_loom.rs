//! A bucket under loom: workers that open flows of one client at once get one endpoint, in every interleaving and
//! permitted reordering. `bucket.rs` is compiled here a second time, over loom's atomics.

use loom::sync::Arc;
use loom::sync::atomic as sync;
use loom::thread;

#[path = "bucket.rs"]
#[allow(unreachable_pub, dead_code, reason = "public where the memory has it")]
mod bucket;

use crate::index::BackendIndex;
use crate::tick::Tick;
use bucket::{Bucket, Occupant, Tag};

const ANNA: Tag = Tag::new(7);
const TIMEOUT: u32 = 80;

/// A new flow at second 100 plus `later`, for which this worker would pick `slot`; slots from 9 on are out of the set.
fn open<const WAYS: usize>(bucket: &Bucket<WAYS>, tag: Tag, slot: u32, later: u32) -> u32 {
    let pick = || {
        let slot = BackendIndex(slot);
        Some(Occupant { slot, generation: 1 })
    };
    let occupant = |slot: BackendIndex| (slot.0 < 9).then_some(1);
    let now = Tick(100).plus_seconds(later);
    let choice = bucket.choose(tag, TIMEOUT, now, occupant, pick);
    choice.expect("something is picked").backend.slot.0
}

/// Two workers open a flow of the same client at `later`, a third does `meanwhile`; both must get one endpoint, and a
/// later flow the same.
fn agree<const WAYS: usize>(before: fn(&Bucket<WAYS>), later: u32, meanwhile: Option<fn(&Bucket<WAYS>)>) {
    let mut builder = loom::model::Builder::new();
    // Three workers have too many interleavings to try all; few bugs need more interruptions.
    builder.preemption_bound = meanwhile.map(|_| 2);
    builder.check(move || {
        let bucket = Arc::new(Bucket::<WAYS>::default());
        before(&bucket);
        let opener = |slot| {
            let bucket = bucket.clone();
            thread::spawn(move || open(&bucket, ANNA, slot, later))
        };
        let third = meanwhile.map(|act| {
            let bucket = bucket.clone();
            thread::spawn(move || act(&bucket))
        });
        let first = opener(1);
        let second = open(&bucket, ANNA, 2, later);
        let first = first.join().expect("it ends");
        if let Some(third) = third {
            third.join().expect("it ends");
        }
        assert_eq!(first, second);
        assert_eq!(open(&bucket, ANNA, 3, later), first);
    });
}

#[test]
fn loom_two_first_flows_of_one_client_get_one_endpoint() {
    agree::<2>(|_| (), 0, None);
}

#[test]
fn loom_two_flows_after_the_time_is_up_get_one_endpoint_even_the_one_before() {
    agree::<2>(
        |bucket| {
            open(bucket, ANNA, 1, 0);
        },
        11,
        None,
    );
}

#[test]
fn loom_two_flows_whose_remembered_endpoint_left_the_set_get_one_endpoint() {
    agree::<2>(
        |bucket| {
            open(bucket, ANNA, 9, 0);
        },
        1,
        None,
    );
}

#[test]
fn loom_another_client_meanwhile_does_not_part_two_flows() {
    let other = |bucket: &Bucket<3>| {
        open(bucket, Tag::new(8), 5, 1);
    };
    agree::<3>(
        |bucket| {
            open(bucket, Tag::new(9), 4, 0);
        },
        1,
        Some(other),
    );
}
