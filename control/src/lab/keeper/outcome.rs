//! Whether the lab has come up, and if not, why: for the command that waits for it.

use super::super::pods::Pod;
use super::{COMING_UP, FAILED, Keeper, READY};

/// A dataplane or control that ended so often while the lab comes up will not run.
const HOPELESS: u32 = 3;

impl Keeper {
    /// Whether everything runs and every pod is ready.
    pub(super) fn is_up(&self) -> bool {
        self.host_port
            && self.services.iter().all(|service| service.is_ready(&self.state))
            && self.pods.values().all(Pod::is_ready)
    }

    /// Whether dataplane or control cannot run, so that waiting longer is in vain.
    pub(super) fn is_hopeless(&self) -> bool {
        self.services.iter().any(|service| service.ends >= HOPELESS)
    }

    /// The line that `up` waits for.
    pub(super) fn up_or_why_not(&self) -> String {
        if let Some(service) = self.services.iter().find(|service| service.ends >= HOPELESS) {
            return format!(
                "{FAILED}{} keeps ending: {}",
                service.name,
                service.last_words(&self.state)
            );
        }
        let seconds = COMING_UP.as_secs();
        if let Some(service) = self
            .services
            .iter()
            .find(|service| !service.is_ready(&self.state))
        {
            let log = self.state.log(service.name);
            return format!(
                "{FAILED}{} does not listen after {seconds} s; see {}",
                service.name,
                log.display()
            );
        }
        if !self.host_port {
            let log = self.state.log("dataplane");
            return format!(
                "{FAILED}the dataplane made no host0 within {seconds} s; see {}",
                log.display()
            );
        }
        if let Some(pod) = self.pods.values().find(|pod| !pod.is_ready()) {
            let log = self.state.pod_log(&pod.key.namespace, &pod.key.name);
            return format!(
                "{FAILED}pod {} is not ready after {seconds} s; see {}",
                pod.key,
                log.display()
            );
        }
        READY.to_owned()
    }
}
