//! Where the recorded material and the binaries under test are.

use std::path::{Path, PathBuf};

/// Why something that a test needs is not there.
#[derive(Debug, thiserror::Error)]
pub enum Missing {
    /// No folder of recorded material.
    #[error("no fixtures: set OUTRIGGER_SHARED or put them in {0}")]
    Fixtures(PathBuf),
    /// A binary under test has not been built.
    #[error("no {name}: set {variable} or build it ({looked})")]
    Binary {
        /// File name.
        name: &'static str,
        /// Environment variable that overrides the search.
        variable: &'static str,
        /// Where it was looked for.
        looked: String,
    },
}

/// Root of the repository.
pub fn repository() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// The folder with `xds/`, `nodes/` and `injected/`: `$OUTRIGGER_SHARED/fixtures`, else
/// `../shared/fixtures` beside the repository, else the small copy in `tests/fixtures`.
pub fn root() -> Result<PathBuf, Missing> {
    let copy = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut places = Vec::new();
    if let Some(shared) = std::env::var_os("OUTRIGGER_SHARED") {
        places.push(PathBuf::from(shared).join("fixtures"));
    }
    places.push(repository().join("../shared/fixtures"));
    places.push(copy.clone());
    places
        .into_iter()
        .find(|p| p.join("injected").is_dir())
        .ok_or(Missing::Fixtures(copy))
}

/// The three products and the lab's own binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// The data plane, `OUTRIGGER_BIN`.
    Outrigger,
    /// The agent, `PILOT_AGENT_BIN`.
    PilotAgent,
    /// The rule installer, `ISTIO_IPTABLES_BIN`.
    IstioIptables,
    /// Test applications, `OUTRIGGER_LAB_BIN`.
    Lab,
}

impl Product {
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Outrigger => ("outrigger", "OUTRIGGER_BIN"),
            Self::PilotAgent => ("pilot-agent", "PILOT_AGENT_BIN"),
            Self::IstioIptables => ("istio-iptables", "ISTIO_IPTABLES_BIN"),
            Self::Lab => ("outrigger-lab", "OUTRIGGER_LAB_BIN"),
        }
    }

    /// Path of the binary: its environment variable, else beside the running executable (or in
    /// the folder above, where cargo puts binaries next to `deps/`).
    pub fn path(self) -> Result<PathBuf, Missing> {
        let (name, variable) = self.names();
        if let Some(path) = std::env::var_os(variable) {
            return Ok(PathBuf::from(path));
        }
        let exe = std::env::current_exe().unwrap_or_default();
        let folders: Vec<&Path> = exe.ancestors().skip(1).take(2).collect();
        let found = folders.iter().map(|f| f.join(name)).find(|p| p.is_file());
        found.ok_or_else(|| Missing::Binary {
            name,
            variable,
            looked: folders
                .iter()
                .map(|f| f.display().to_string())
                .collect::<Vec<_>>()
                .join(", "),
        })
    }
}
