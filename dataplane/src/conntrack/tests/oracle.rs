use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Open(u32),
    Close(u32),
    Expire(usize),
    Find(Vec<(u32, bool)>),
}

fn step() -> impl Strategy<Value = Step> {
    // More flows than the 64 there is room for.
    let n = || 0u32..90;
    prop_oneof![
        4 => n().prop_map(Step::Open),
        2 => n().prop_map(Step::Close),
        1 => (0usize..40).prop_map(Step::Expire),
        // More keys than one burst.
        1 => prop::collection::vec((n(), any::<bool>()), 0..150).prop_map(Step::Find),
    ]
}

proptest! {
    #[test]
    fn flows_hold_exactly_what_a_hash_map_holds(steps in prop::collection::vec(step(), 1..400)) {
        holds_what_a_hash_map_holds::<V4>(&steps)?;
        holds_what_a_hash_map_holds::<V6>(&steps)?;
    }
}

fn holds_what_a_hash_map_holds<A: Numbered>(steps: &[Step]) -> Result<(), TestCaseError> {
    let mut flows = flows::<A>(64);
    let mut oracle: HashMap<FlowKey<A>, (FlowIndex, Direction)> = HashMap::new();
    for (now, step) in (0..).zip(steps.iter().cloned()) {
        // A tick is 5 s here, so that UDP's 30 s end within a case.
        let tick = seconds(now * 5);
        match step {
            Step::Open(n) => {
                let new = NewFlow {
                    state: State::Replied, // never evicted
                    ..new::<A>(Protocol::UDP, n)
                };
                match open(&mut flows, &new, tick) {
                    Ok(index) => {
                        prop_assert_eq!(oracle.insert(new.original, (index, Direction::Original)), None);
                        prop_assert_eq!(oracle.insert(new.reply, (index, Direction::Reply)), None);
                    }
                    Err(OpenError::OriginalTaken) => prop_assert!(oracle.contains_key(&new.original)),
                    Err(OpenError::Full) => prop_assert_eq!(oracle.len(), 2 * 64),
                    Err(other) => prop_assert!(false, "{}", other),
                }
            }
            Step::Close(n) => {
                if let Some((index, _)) = oracle.remove(&new::<A>(Protocol::UDP, n).original) {
                    let closed = flows.close(index).unwrap();
                    prop_assert_eq!(
                        oracle.remove(&closed.key(Direction::Reply)),
                        Some((index, Direction::Reply))
                    );
                }
            }
            Step::Expire(budget) => flows.expire(tick, budget, &mut |flow| {
                for direction in Direction::BOTH {
                    assert!(oracle.remove(&flow.key(direction)).is_some());
                }
            }),
            Step::Find(which) => {
                let key = |(n, reply): (u32, bool)| {
                    let new = new::<A>(Protocol::UDP, n);
                    if reply { new.reply } else { new.original }
                };
                let keys: Vec<_> = which.into_iter().map(key).collect();
                let found = find_burst(&mut flows, &keys);
                for (key, found) in keys.iter().zip(found) {
                    prop_assert_eq!(found, oracle.get(key).copied());
                    prop_assert_eq!(flows.find(key), found);
                }
            }
        }
        prop_assert_eq!(flows.usage().used * 2, oracle.len());
        let listed: HashMap<_, _> = flows
            .iter()
            .flat_map(|(i, flow)| Direction::BOTH.map(|d| (flow.key(d), (i, d))))
            .collect();
        prop_assert_eq!(&listed, &oracle);
    }
    Ok(())
}
