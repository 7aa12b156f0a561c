//! What containers are told of Services as they start (ENV-1): the Services that control knows then. A container waits for
//! control's answer; if there is none, it is told what the last one was told.

use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;

use super::super::now;
use super::{Event, Keeper};
use crate::api::{self, List, Status};

/// How long containers wait for control: longer than it takes to start, and not as long as a lab may take to come up.
const LONGEST: Duration = Duration::from_secs(10);
/// Control tells only when asked.
const PAUSE: Duration = Duration::from_millis(10);

/// What is known of Services.
#[derive(Default)]
pub(super) struct Known {
    /// From control's last answer.
    services: Arc<Vec<Service>>,
    /// That answer came in this turn.
    fresh: bool,
    /// A thread asks.
    asked: bool,
}

impl Known {
    /// Whether an answer is under way.
    pub(super) const fn is_asked(&self) -> bool {
        self.asked
    }
}

impl Keeper {
    /// Control answered, or did not in time.
    pub(super) fn services_known(&mut self, services: Option<Vec<Service>>) {
        if let Some(services) = services {
            self.known.services = Arc::new(services);
        }
        (self.known.fresh, self.known.asked) = (true, false);
    }

    /// What containers that start now are told; nothing if they have to wait.
    pub(super) fn services_now(&mut self) -> Option<Arc<Vec<Service>>> {
        let fresh = std::mem::take(&mut self.known.fresh);
        (fresh || self.services.is_empty()).then(|| self.known.services.clone())
    }

    /// Asks control, once at a time.
    pub(super) fn ask_for_services(&mut self) {
        if std::mem::replace(&mut self.known.asked, true) {
            return;
        }
        let (control, events) = (self.state.socket("control"), self.events.clone());
        thread::spawn(move || drop(events.send(Event::Services(ask(&control)))));
    }
}

/// All Services, once control has read everything.
fn ask(control: &Path) -> Option<Vec<Service>> {
    let deadline = now() + LONGEST;
    while now() < deadline {
        let status = api::ask::<Status>(control, List::Status).unwrap_or_default();
        if status.first().is_some_and(|status| status.complete) {
            match api::ask(control, List::Services) {
                Ok(services) => return Some(services),
                Err(error) => log::debug!("{error:#}"),
            }
        }
        thread::sleep(PAUSE);
    }
    log::warn!(
        "control tells of no Services within {LONGEST:?}: containers start with what was known before"
    );
    None
}
