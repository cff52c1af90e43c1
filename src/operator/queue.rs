//! Who comes first: drains of one cluster run one at a time.
//!
//! What has begun comes before what has not, the coordinator's pod last, older before younger. A pod that was drained and
//! is to come back keeps its place until its capture has registered, so that a cluster is never short of two.

use jiff::Timestamp;

use super::observe::Cluster;
use crate::{
    resource::{BlockedBy, CaptureDrain, ending, is_finished},
    view::CaptureView,
};

/// How long a pod that went may take to come back before others go on.
const RETURN_PATIENCE_SECONDS: i64 = 120;
/// How long a pod that went may take to be made anew.
const REMAKE_PATIENCE_SECONDS: i64 = 5;

/// The UID of the pod that has a name now, if there is one.
pub type UidOf<'a> = &'a dyn Fn(&str) -> Option<String>;

/// What comes before a drain that has not begun, the next one first. `all` are those of its namespace, itself included.
pub fn ahead<'a>(
    drain: &CaptureDrain,
    all: impl Iterator<Item = &'a CaptureDrain>,
    cluster: &Cluster,
    uid_of: UidOf<'_>,
    now: Timestamp,
) -> Vec<BlockedBy> {
    let mut others: Vec<_> = Vec::new();
    let mut returning = Vec::new();
    let own = rank(drain, cluster);
    let siblings = all
        .filter(|other| other.spec.cluster_ref == drain.spec.cluster_ref && other.metadata.uid != drain.metadata.uid);
    for other in siblings {
        if is_finished(other) {
            returning.extend(pod_to_return(other, cluster, uid_of, now).map(|pod| BlockedBy::new("Pod", Some(pod))));
        } else if is_live(other, cluster) && !is_same_target(other, drain) && rank(other, cluster) < own {
            others.push(other);
        }
    }
    others.sort_by_key(|other| rank(other, cluster));
    let others = others.into_iter().map(|other| BlockedBy::new("CaptureDrain", other.metadata.name.clone()));
    returning.into_iter().chain(others).collect()
}

/// Whether it has begun, or may: one whose capture has not registered yet holds nobody up.
fn is_live(drain: &CaptureDrain, cluster: &Cluster) -> bool {
    let is_there = cluster.captures.iter().any(|capture| is_target(drain, capture));
    has_begun(drain) || drain.metadata.deletion_timestamp.is_none() && is_there
}

fn is_target(drain: &CaptureDrain, capture: &CaptureView) -> bool {
    drain.spec.target.names(&capture.id, capture.pod_name.as_deref())
}

fn has_begun(drain: &CaptureDrain) -> bool {
    drain.status.as_ref().is_some_and(|status| status.epoch.is_some())
}

fn is_same_target(one: &CaptureDrain, other: &CaptureDrain) -> bool {
    one.spec.target == other.spec.target
}

/// Where it stands in the queue: smaller comes first.
fn rank<'a>(drain: &'a CaptureDrain, cluster: &Cluster) -> (bool, bool, Option<Timestamp>, Option<&'a str>) {
    let is_coordinator = cluster.captures.iter().any(|capture| capture.is_coordinator && is_target(drain, capture));
    let created = drain.metadata.creation_timestamp.as_ref().map(|created| created.0);
    (!has_begun(drain), is_coordinator, created, drain.metadata.name.as_deref())
}

/// The pod of a drain that ended well, as long as it is to come back.
fn pod_to_return(drain: &CaptureDrain, cluster: &Cluster, uid_of: UidOf<'_>, now: Timestamp) -> Option<String> {
    let status = drain.status.as_ref()?;
    let name = drain.spec.target.pod_name.as_ref()?;
    let age = now.as_second() - status.completion_time.as_ref()?.0.as_second();
    if ending(drain) != Some("PodGone") || age >= RETURN_PATIENCE_SECONDS {
        return None;
    }
    let is_back = match uid_of(name) {
        None => age >= REMAKE_PATIENCE_SECONDS,
        Some(uid) => cluster.captures.iter().any(|capture| match &capture.pod_uid {
            Some(of) => *of == uid,
            None => capture.pod_name.as_ref() == Some(name),
        }),
    };
    (!is_back).then(|| name.clone())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::{
        operator::tests::capture,
        resource::{CaptureDrainStatus, Conditions, FINISHED, parse},
    };

    fn second(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn drain(name: &str, created: i64, epoch: Option<i64>) -> CaptureDrain {
        let text = format!(
            "apiVersion: capturedrain.io/v1alpha1\nkind: CaptureDrain\nmetadata: {{name: of-{name}, uid: {name}}}\n\
             spec:\n  clusterRef: {{serviceName: cdc}}\n  target: {{podName: {name}}}\n"
        );
        let mut drain = parse(&text, "test").unwrap().remove(0);
        drain.metadata.creation_timestamp = Some(Time(second(created)));
        drain.status = Some(CaptureDrainStatus { epoch, ..CaptureDrainStatus::default() });
        drain
    }

    fn gone(name: &str, at: i64) -> CaptureDrain {
        let mut drain = drain(name, 0, Some(1));
        let status = drain.status.as_mut().unwrap();
        let mut conditions = Conditions::new(&[], None, second(at));
        conditions.set(FINISHED, true, "PodGone", "");
        status.conditions = conditions.into_inner();
        status.completion_time = Some(Time(second(at)));
        drain
    }

    fn cluster(captures: &[(&str, &str, bool)]) -> Cluster {
        let capture = |(pod, uid, is_coordinator): &(&str, &str, bool)| CaptureView {
            pod_name: Some((*pod).to_owned()),
            pod_uid: Some((*uid).to_owned()),
            is_coordinator: *is_coordinator,
            ..capture(pod, "1")
        };
        Cluster { captures: captures.iter().map(capture).collect(), ..Cluster::default() }
    }

    fn check(
        of: &CaptureDrain,
        others: &[CaptureDrain],
        cluster: &Cluster,
        uid: Option<&str>,
        now: i64,
    ) -> Vec<String> {
        let uid_of = |_: &str| uid.map(str::to_owned);
        let ahead = ahead(of, others.iter().chain([of]), cluster, &uid_of, second(now));
        ahead.into_iter().map(|by| by.name.unwrap_or_default()).collect()
    }

    #[test]
    fn what_has_begun_comes_first_then_age_and_the_coordinator_last() {
        let all = [drain("a", 1, None), drain("b", 2, None), drain("c", 3, Some(7)), drain("d", 4, None)];
        let cluster = cluster(&[("a", "1", true), ("b", "2", false), ("c", "3", false), ("d", "4", false)]);
        let names = |of: &CaptureDrain| check(of, &all, &cluster, None, 10);
        assert_eq!(names(&all[2]), Vec::<String>::new());
        assert_eq!(names(&all[1]), ["of-c"]);
        assert_eq!(names(&all[3]), ["of-c", "of-b"]);
        assert_eq!(names(&all[0]), ["of-c", "of-b", "of-d"], "it coordinates");
    }

    #[test]
    fn one_whose_capture_is_not_there_holds_nobody_up() {
        let (waits, of) = (drain("a", 1, None), drain("b", 2, None));
        let there = cluster(&[("a", "1", false), ("b", "2", true)]);
        assert_eq!(check(&of, std::slice::from_ref(&waits), &there, None, 10), ["of-a"]);
        assert_eq!(check(&of, &[waits], &cluster(&[("b", "2", true)]), None, 10), Vec::<String>::new());
    }

    #[test]
    fn two_drains_of_one_target_do_not_wait_for_each_other() {
        let (first, mut second) = (drain("a", 1, None), drain("a", 2, None));
        second.metadata.uid = Some("another".to_owned());
        assert_eq!(check(&second, &[first], &cluster(&[]), None, 10), Vec::<String>::new());
    }

    #[test]
    fn a_deleted_one_that_never_began_is_passed_over() {
        let mut first = drain("a", 1, None);
        first.metadata.deletion_timestamp = Some(Time(second(2)));
        assert_eq!(check(&drain("b", 2, None), &[first], &cluster(&[]), None, 10), Vec::<String>::new());
    }

    #[test]
    fn a_pod_that_went_is_waited_for_until_its_capture_is_back() {
        let (of, went) = (drain("b", 2, None), gone("a", 100));
        let others = std::slice::from_ref(&went);
        let (away, back) = (cluster(&[("b", "2", true)]), cluster(&[("a", "new", false), ("b", "2", true)]));
        for (cluster, uid, now, waits) in [
            (&away, None, 101, true),
            (&away, None, 105, false),
            (&away, Some("new"), 110, true),
            (&away, Some("new"), 220, false),
            (&back, Some("new"), 110, false),
            (&back, Some("newer"), 110, true),
        ] {
            let ahead = check(&of, others, cluster, uid, now);
            assert_eq!(ahead.len(), usize::from(waits), "{uid:?} {now}");
        }
    }
}
