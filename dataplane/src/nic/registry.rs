//! What the ports of one interface share, in whichever worker they are: the first makes it, the last undoes it.
//!
//! Takes  a key, whether what is there will do, and how to make it.
//! Gives  a share in it. The last one drops the value before anybody can ask for it again, so nobody finds it half undone.
//! Never  locks for longer than something is asked for or undone. Making and undoing must not ask the same registry.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError, Weak};

/// All there is of one kind, by key.
pub(crate) struct Registry<K: 'static, T: 'static>(Mutex<Vec<(K, Weak<T>)>>);

/// A share in one of them.
pub(crate) struct Share<K: 'static, T: 'static> {
    /// `None` within `drop` only.
    value: Option<Arc<T>>,
    registry: &'static Registry<K, T>,
}

impl<K: PartialEq, T> Registry<K, T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// What there is of this key that `fits`, else what `make` makes. Errors: theirs.
    pub(crate) fn hold<E>(
        &'static self,
        key: K,
        fits: impl Fn(&T) -> Result<bool, E>,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<Share<K, T>, E> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(_, value)| value.strong_count() > 0);
        let mut found = None;
        // Shares go under the lock, so what is counted here stays, and none of these is the last one.
        for value in all
            .iter()
            .filter(|(its, _)| *its == key)
            .filter_map(|(_, value)| value.upgrade())
        {
            if fits(&value)? {
                found = Some(value);
                break;
            }
        }
        let value = match found {
            Some(value) => value,
            None => {
                let made = Arc::new(make()?);
                all.push((key, Arc::downgrade(&made)));
                made
            }
        };
        Ok(Share {
            value: Some(value),
            registry: self,
        })
    }
}

impl<K, T> Deref for Share<K, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("there until dropped")
    }
}

impl<K, T> Drop for Share<K, T> {
    fn drop(&mut self) {
        let _all = self.registry.0.lock().unwrap_or_else(PoisonError::into_inner);
        self.value = None;
    }
}

impl<K, T: fmt::Debug> fmt::Debug for Share<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<K, T: fmt::Display> fmt::Display for Share<K, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use crossbeam::channel::{Sender, unbounded};

    use super::*;

    #[test]
    fn one_is_made_for_all_who_ask_for_what_it_fits() {
        static NUMBERS: Registry<char, u32> = Registry::new();
        let hold = |key, least: u32| NUMBERS.hold(key, |there| Ok::<_, u32>(*there >= least), || Ok(least));
        let (first, second) = (hold('a', 5).unwrap(), hold('a', 3).unwrap());
        assert_eq!((*first, *second), (5, 5), "shared");
        assert_eq!(*hold('b', 3).unwrap(), 3, "another key");
        assert_eq!(*hold('a', 7).unwrap(), 7, "what is there does not do");
        drop((first, second));
        assert_eq!(*hold('a', 2).unwrap(), 2, "made anew, since nobody held it");
        let refused = NUMBERS.hold('a', |_| Ok(true), || Err("none to be had"));
        assert_eq!(refused.err(), Some("none to be had"));
    }

    static SWITCHES: Registry<(), Switched> = Registry::new();

    /// Tells, when it is undone, whether somebody could have asked for it meanwhile.
    struct Switched(Sender<bool>);

    impl Drop for Switched {
        fn drop(&mut self) {
            self.0.send(SWITCHES.0.try_lock().is_ok()).unwrap();
        }
    }

    #[test]
    fn nobody_can_ask_for_what_is_being_undone() {
        let (tell, told) = unbounded();
        let hold = || {
            SWITCHES
                .hold((), |_| Ok::<_, ()>(true), || Ok(Switched(tell.clone())))
                .unwrap()
        };
        let (first, last) = (hold(), hold());
        drop(first);
        assert!(told.is_empty(), "still held");
        drop(last);
        assert_eq!(told.try_recv(), Ok(false));
    }
}
