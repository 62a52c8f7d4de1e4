//! RDS and SDS: resources that stand alone; what is bad keeps its old value.

use std::sync::Arc;

use outrigger_config::tls::SdsSource;
use outrigger_config::{parse_route_configuration, parse_secret};
use outrigger_xds::Update;

use super::Engine;
use crate::control::depends::Target;
use crate::http::route::RouteRuntime;

impl Engine {
    pub(super) fn apply_routes(&mut self, update: &Update) -> Result<(), String> {
        let mut errors = Vec::new();
        for resource in &update.added {
            let name: Arc<str> = resource.name.as_str().into();
            if !self.rds_names.contains(&name) {
                continue;
            }
            let section = &mut self.registry.routes;
            if section.is_unchanged(&name, &resource.body) {
                continue;
            }
            match parse_route_configuration(&resource.body) {
                Ok(parsed) => {
                    section
                        .active
                        .insert(&name, &resource.version, resource.body.clone());
                    section.errors.remove(&name);
                    self.registry.ignore("route", &name, parsed.ignored);
                    let runtime = RouteRuntime::build(Arc::new(parsed.value), &self.store);
                    self.store.routes.slot(&name).store(Some(runtime));
                }
                Err(error) => {
                    let text = error.to_string();
                    section.fail(
                        &name,
                        &resource.version,
                        resource.body.clone(),
                        text.clone(),
                    );
                    errors.push(format!("{name}: {text}"));
                    self.give_up(Target::Route(name));
                }
            }
        }
        if errors.is_empty() {
            self.registry.routes.version.clone_from(&update.version);
            return Ok(());
        }
        Err(errors.join(", "))
    }

    pub(super) fn apply_secrets(
        &mut self,
        source: &SdsSource,
        update: &Update,
    ) -> Result<(), String> {
        let mut errors = Vec::new();
        let secret = |name| Target::Secret {
            source: source.clone(),
            name,
        };
        for resource in &update.added {
            let name: Arc<str> = resource.name.as_str().into();
            let applied = parse_secret(&resource.body)
                .map_err(|e| e.to_string())
                .and_then(|p| {
                    self.store
                        .secrets
                        .update(source, &p.value)
                        .map_err(|e| e.to_string())?;
                    Ok(p.ignored)
                });
            let section = &mut self.registry.secrets;
            // Bodies hold private keys; the copy for config_dump must not.
            let body = crate::admin::redact::secret(&resource.body);
            match applied {
                Ok(ignored) => {
                    section.errors.remove(&name);
                    section.active.insert(&name, &resource.version, body);
                    self.registry.ignore("secret", &name, ignored);
                }
                Err(text) => {
                    section.fail(&name, &resource.version, body, text.clone());
                    errors.push(format!("{name}: {text}"));
                    self.give_up(secret(name));
                }
            }
        }
        // As in Envoy, a secret goes with its last user only: what the server takes away stays in use.
        for name in &update.removed {
            self.give_up(secret(name.as_str().into()));
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors.join(", "))
        }
    }
}
