//! Between a pod's report that it is to go and its SIGTERM: the wait until no new flow is sent to it.
//!
//! A cluster has this as a race that it often loses: a kubelet stops a pod while some node still sends to it. Takes the
//! pods' uids; returns when control tells of them as terminating, which it does after the dataplane has acknowledged a
//! table without them. Never longer than [`LONGEST`]: a pod must stop even if control hangs.

use std::path::Path;
use std::thread;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;

use super::now;
use crate::api::{self, List};

/// Far more than a change takes from file to table (milliseconds), and little to someone who waits for a pod to go.
const LONGEST: Duration = Duration::from_secs(2);
/// Control tells only when asked.
const PAUSE: Duration = Duration::from_millis(10);

/// Waits until control has taken every one of `uids` out of service, or is not there, or takes too long.
pub(super) fn wait_until_known(control: &Path, uids: &[String]) {
    let deadline = now() + LONGEST;
    while now() < deadline {
        match api::ask::<Pod>(control, List::Pods) {
            Ok(pods) if !pods.iter().any(|pod| still_serves(pod, uids)) => return,
            Ok(_) => thread::sleep(PAUSE),
            Err(error) => {
                log::warn!("pods stop without control's knowledge: {error:#}");
                return;
            }
        }
    }
    log::warn!(
        "control did not take {} stopping pods out of service within {LONGEST:?}",
        uids.len()
    );
}

fn still_serves(pod: &Pod, uids: &[String]) -> bool {
    let meant = pod.metadata.uid.as_ref().is_some_and(|uid| uids.contains(uid));
    meant && pod.metadata.deletion_timestamp.is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(uid: &str, terminating: bool) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.to_owned());
        if terminating {
            let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH);
            pod.metadata.deletion_timestamp = Some(time);
        }
        pod
    }

    #[test]
    fn a_pod_may_stop_only_when_control_knows_that_it_is_to_go() {
        let leaving = ["a".to_owned()];
        assert!(still_serves(&pod("a", false), &leaving));
        assert!(!still_serves(&pod("a", true), &leaving));
        assert!(!still_serves(&pod("b", false), &leaving));
    }
}
