//! Other proxies on this node: rules that come before Portolan's, with endpoints of their own.

use netfilter::ForeignRuleset;
use nft::Family;
use nix::net::if_::if_nametoindex;

use super::Check;
use crate::takeover::{self, ipvs};

/// An interface that each agent of Cilium makes.
const CILIUM: &str = "cilium_host";

/// `alarm`: what the take-over could not remove.
pub(super) fn check(alarm: Option<&str>) -> Check {
    let mut check = Check::new("other proxies");
    check.faults.extend(alarm.map(str::to_owned));
    let has_table = ForeignRuleset::open().and_then(|mut rules| {
        let mut tables = [Family::Ip, Family::Ip6].into_iter();
        tables.try_fold(false, |has, family| {
            Ok(has || rules.has_table(family, takeover::TABLE)?)
        })
    });
    match has_table {
        Ok(true) => check.faults.push(format!(
            "the table {} is there: kube-proxy runs on this node, or has left it; stop it, or let --take-over-kube-proxy remove it",
            takeover::TABLE
        )),
        Ok(false) => {}
        Err(error) => tracing::debug!(%error, "cannot look for tables"),
    }
    if if_nametoindex(ipvs::DEVICE).is_ok() {
        check.notes.push(format!(
            "{} is left from kube-proxy's IPVS mode, whose connections live in it: `portolan cleanup --kube-proxy` removes it \
             when they may break",
            ipvs::DEVICE
        ));
    }
    if if_nametoindex(CILIUM).is_ok() {
        check.notes.push(format!(
            "Cilium is on this node ({CILIUM}): with kubeProxyReplacement it carries Services itself, before Portolan's rules"
        ));
    }
    check
}
