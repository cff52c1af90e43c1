//! Whether a `PodDisruptionBudget` would refuse the eviction anyway: then nothing is drained for it.

use k8s_openapi::{api::policy::v1::PodDisruptionBudget, apimachinery::pkg::apis::meta::v1::LabelSelector};
use kube::{
    ResourceExt,
    core::{Selector, SelectorExt as _},
};

use crate::operator::rollout::Marks;

/// Why the API server would refuse to let a pod go, as it judges after this webhook; `None`: it would not.
pub fn refusing(budgets: &[PodDisruptionBudget], labels: &Marks, is_ready: bool) -> Option<String> {
    let of_pod: Vec<_> = budgets.iter().filter(|budget| selects(budget, labels)).collect();
    match &of_pod[..] {
        [] => None,
        [budget] => refuses(budget, is_ready)
            .then(|| format!("PodDisruptionBudget {} allows no disruption now", budget.name_any())),
        several => {
            let names: Vec<_> = several.iter().map(|budget| budget.name_any()).collect();
            Some(format!("more than one PodDisruptionBudget selects it ({})", names.join(", ")))
        }
    }
}

fn selects(budget: &PodDisruptionBudget, labels: &Marks) -> bool {
    let selector: Option<&LabelSelector> = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
    // One that makes no sense selects nothing, as it does for the API server.
    selector.is_some_and(|selector| Selector::try_from(selector.clone()).is_ok_and(|selector| selector.matches(labels)))
}

fn refuses(budget: &PodDisruptionBudget, is_ready: bool) -> bool {
    let Some(status) = &budget.status else { return false };
    if status.disruptions_allowed > 0 {
        return false;
    }
    let policy = budget.spec.as_ref().and_then(|spec| spec.unhealthy_pod_eviction_policy.as_deref());
    // A pod that is not ready may go all the same: always, or while those that are wanted are there.
    let is_spared = !is_ready
        && (policy == Some("AlwaysAllow")
            || status.desired_healthy > 0 && status.current_healthy >= status.desired_healthy);
    !is_spared
}
