//! The way to istiod and to the CA: name, TCP, TLS with the mounted roots, each said apart.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Check, span};
use crate::istiod::{ConnectError, IstiodConnector};
use crate::options::Options;
use crate::options::security::{Mounted, Security, SecurityError};
use crate::resolver::Resolver;

pub(super) async fn checks(options: &Options, limit: Duration) -> Vec<Check> {
    let security = Security {
        environment: &options.environment,
        settings: &options.settings,
        compliance: options.compliance,
        directory: Path::new("."),
    };
    let address = options.settings.discovery_address.clone();
    let mut checks = vec![name(&address, limit).await];
    checks.push(peer("istiod", &address, security.xds(), limit).await);
    checks.push(match security.mounted() {
        Ok(Mounted::All(_)) => Check::skipped("ca", "certificates are mounted, no CA is asked"),
        Ok(Mounted::Some(_) | Mounted::Nothing) => {
            let explicit = options.environment.text("CA_ADDR");
            let ca = if explicit.is_empty() {
                address
            } else {
                explicit
            };
            peer("ca", &ca, security.ca().map(|ca| ca.endpoint), limit).await
        }
        Err(e) => Check::failure("ca", e.to_string(), settings_fix(&e)),
    });
    checks
}

/// The name that the proxy's own agent resolves first.
async fn name(address: &str, limit: Duration) -> Check {
    const NAME: &str = "dns";
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let begin = Instant::now();
    let fix = "see /etc/resolv.conf and the cluster DNS pods; the Service of istiod must exist in the \
               namespace that the address names";
    match tokio::time::timeout(limit, Resolver::default().lookup(host)).await {
        Ok(Ok(ips)) => {
            let list: Vec<String> = ips.iter().map(ToString::to_string).collect();
            let took = begin.elapsed().as_millis();
            Check::ok(NAME, format!("{host} is {} ({took} ms)", list.join(", ")))
        }
        Ok(Err(e)) => Check::failure(NAME, e.to_string(), fix),
        Err(_) => Check::failure(
            NAME,
            format!("{host}: no answer within {}", span(limit)),
            fix,
        ),
    }
}

async fn peer(
    name: &'static str,
    address: &str,
    connector: Result<IstiodConnector, SecurityError>,
    limit: Duration,
) -> Check {
    let connector = match connector {
        Ok(connector) => connector,
        Err(e) => return Check::failure(name, e.to_string(), settings_fix(&e)),
    };
    let begin = Instant::now();
    match tokio::time::timeout(limit, connector.open()).await {
        Ok(Ok(_)) => {
            let took = begin.elapsed().as_millis();
            let server = connector.server_name();
            Check::ok(
                name,
                format!("{address} connected and verified as {server} ({took} ms)"),
            )
        }
        Ok(Err(e)) => Check::failure(name, format!("{address}: {e}"), connect_fix(&e)),
        Err(_) => {
            let detail = format!("{address}: no connection within {}", span(limit));
            Check::failure(name, detail, NETWORK_FIX)
        }
    }
}

const NETWORK_FIX: &str = "see that istiod runs and that no NetworkPolicy or firewall stops the pod \
                           from reaching it on this port";

fn settings_fix(error: &SecurityError) -> &'static str {
    match error {
        SecurityError::MissingRoot { .. } => {
            "mount the ConfigMap istio-ca-root-cert at /var/run/secrets/istio; istiod writes it into \
             every namespace (see its log if it does not exist)"
        }
        _ => "change the setting that the message names",
    }
}

fn connect_fix(error: &ConnectError) -> String {
    let text = match error {
        ConnectError::Resolve(_) => "see the dns check",
        ConnectError::Tcp { .. } | ConnectError::Timeout(_) => NETWORK_FIX,
        ConnectError::Tls(_) => {
            "see that the mounted root certificate is a PEM file and that the agent may read it"
        }
        ConnectError::Proxy { .. } => "see HTTPS_PROXY and NO_PROXY",
        ConnectError::Handshake { source, .. } => return handshake_fix(&source.to_string()),
    };
    text.to_owned()
}

fn handshake_fix(message: &str) -> String {
    let message = message.to_ascii_lowercase();
    let text = if message.contains("unknownissuer") || message.contains("badsignature") {
        "the mounted root is not that of this istiod: compare the ConfigMap istio-ca-root-cert with \
         istiod's CA; after a change of the root, restart the pod"
    } else if message.contains("expired") || message.contains("notvalidyet") {
        "renew istiod's certificate, or set the clock (see the clock check)"
    } else if message.contains("notvalidforname") {
        "set ISTIOD_SAN or use a name that istiod's certificate holds"
    } else {
        "see that the port is istiod's TLS port (15012) and that nothing in between ends TLS"
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_handshake_failure_has_its_fix() {
        for (message, want) in [
            (
                "invalid peer certificate: UnknownIssuer",
                "mounted root is not that",
            ),
            (
                "invalid peer certificate: Expired",
                "renew istiod's certificate",
            ),
            (
                "invalid peer certificate: certificate not valid for name; NotValidForName",
                "ISTIOD_SAN",
            ),
            (
                "received corrupt message of type InvalidContentType",
                "TLS port (15012)",
            ),
        ] {
            let fix = handshake_fix(message);
            assert!(fix.contains(want), "{message}: {fix}");
        }
    }
}
