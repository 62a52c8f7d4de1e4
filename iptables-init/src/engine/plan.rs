//! The reading half of a run: what is there, which backend serves which family, what has to go.
//! Writes nothing.

use super::{FAMILIES, StepError, Transaction};
use crate::iptables::apply::FamilyPlan;
use crate::iptables::detect::{self, Residue, Tool};
use crate::iptables::legacy::{self, LegacyState};
use crate::iptables::state::State;
use crate::iptables::text::render_tables;
use crate::nft::apply::{self as nft, Snapshot};
use crate::nft::compile::compile;
use crate::nft::plan::{NftTable, build_plan};
use crate::nft::socket::NftSocket;
use crate::nft::state::TableState;
use crate::routes::{self, Changes, Ownership, RoutePlan, RouteSocket};
use crate::rules::{Family, Flavor, build_rules};

/// What there was before the first step.
pub(super) struct Before {
    /// `None` on a kernel without nf_tables.
    pub(super) nft: Option<Snapshot>,
    pub(super) legacy: [LegacyState; 2],
}

impl Before {
    fn residue(&self, family: Family) -> Residue {
        let nft = self.nft.as_ref();
        Residue {
            legacy: self.legacy[family as usize],
            own_in_nft: nft.is_some_and(|nft| nft.xtables.has_own_chains(family)),
        }
    }
}

/// Who writes the rules.
pub(super) enum Backend {
    Native {
        plan: Vec<NftTable>,
        wanted: Vec<TableState>,
    },
    Programs(Vec<FamilyPlan>),
}

impl Transaction<'_, '_> {
    pub(super) fn look(&self, native: bool) -> Result<Before, StepError> {
        let nft = NftSocket::open().and_then(|mut socket| nft::read(&mut socket));
        let nft = match nft {
            Ok(snapshot) => Some(snapshot),
            Err(error) if error.is_unsupported() && !native => None,
            Err(error) => return Err(error.into()),
        };
        let legacy = [legacy::read(Family::V4)?, legacy::read(Family::V6)?];
        Ok(Before { nft, legacy })
    }

    pub(super) fn choose(&mut self, before: &Before) -> Result<Backend, StepError> {
        let config = self.config;
        if config.settings.native_nftables {
            return self.native();
        }
        let rules = build_rules(&config.rules, Flavor::Iptables);
        let mut plans = Vec::new();
        for family in FAMILIES {
            if family == Family::V6 && !config.rules.ipv6 {
                continue;
            }
            let residue = before.residue(family);
            let choice = detect::choose(family, config.forced, residue, self.lock.as_ref())?;
            let Some(choice) = choice else {
                if family == Family::V6 {
                    return Err(StepError::NoIpv6Tool);
                }
                self.log.warn("no iptables program works in this image, using native nftables through netlink instead");
                return self.native();
            };
            let tables = render_tables(&rules, &config.rules, family);
            let force = config.settings.force_apply;
            let plan = FamilyPlan::new(choice.tool, &choice.before, &tables, &self.names, force);
            self.printed.push((plan.tool.clone(), choice.before));
            plans.push(plan);
        }
        Ok(Backend::Programs(plans))
    }

    fn native(&self) -> Result<Backend, StepError> {
        let plan = build_plan(&self.config.rules);
        let wanted = compile(&plan, &self.names)?;
        Ok(Backend::Native { plan, wanted })
    }

    /// Legacy rules of ours in families that another backend will serve, or none.
    pub(super) fn stale_legacy(
        &self,
        before: &Before,
        backend: &Backend,
    ) -> Result<Vec<(Tool, State)>, StepError> {
        let served = |family: Family| match backend {
            Backend::Native { .. } => false,
            Backend::Programs(plans) => plans
                .iter()
                .any(|p| p.tool.family == family && p.tool.legacy),
        };
        let families: Vec<Family> = FAMILIES.into_iter().filter(|f| !served(*f)).collect();
        self.legacy_of(before, &families)
    }

    pub(super) fn legacy_of(
        &self,
        before: &Before,
        families: &[Family],
    ) -> Result<Vec<(Tool, State)>, StepError> {
        let mut stale = Vec::new();
        for family in families {
            if before.legacy[*family as usize] != LegacyState::Own {
                continue;
            }
            let tool = Tool::legacy(*family, self.lock.as_ref());
            let text = tool
                .save()
                .map_err(|_| StepError::NoLegacyTool(tool.name.clone()))?;
            stale.push((tool, State::parse(&text)));
        }
        Ok(stale)
    }

    pub(super) fn plan_routes(
        &self,
        socket: &RouteSocket,
        before: &Before,
        backend: &Backend,
        stale: &[(Tool, State)],
    ) -> Result<Changes, StepError> {
        let rules = &self.config.rules;
        let inbound = rules.tproxy && !rules.inbound_ports.is_none();
        let mut wanted = RoutePlan {
            ipv6: rules.ipv6,
            address: rules.ipv6,
            tproxy: inbound.then_some((rules.mark, self.config.route_table)),
        };
        if wanted.address && routes::loopback_ipv6_disabled() {
            self.log.warn("IPv6 is disabled on the loopback interface: the ::6 address and the IPv6 route of TPROXY are not added, captured IPv6 traffic cannot reach the proxy");
            wanted.address = false;
            wanted.ipv6 = false;
        }
        // A rule of an earlier run is known by the mark that its TPROXY rules set.
        let mut marks = vec![rules.mark];
        marks.extend(before.nft.iter().flat_map(Snapshot::tproxy_marks));
        if let Backend::Programs(plans) = backend {
            marks.extend(plans.iter().flat_map(|p| p.before.tproxy_marks()));
        }
        marks.extend(stale.iter().flat_map(|(_, state)| state.tproxy_marks()));
        Ok(routes::plan(socket, wanted, &Ownership::Marks(marks))?)
    }
}
