//! From a downloaded body to the module in it: gzip and tar are taken off until the Wasm magic
//! appears. Streams, so that a large module never lies in memory; blocking, for a thread of its own.

use std::fs::File;
use std::io::{self, BufReader, Cursor, Read, Write};
use std::path::Path;

use aws_lc_rs::digest::{Context, SHA256};
use flate2::read::GzDecoder;

/// Every Wasm module begins so.
const WASM_MAGIC: &[u8] = b"\0asm";
const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b];
/// Place and text of tar's magic in its first block.
const TAR_MAGIC: (usize, &[u8]) = (257, b"ustar");
/// What is looked at to tell the formats apart: one tar block.
const BLOCK: u64 = 512;
/// gzip around tar around gzip around a module is more than anybody makes.
const MAX_LAYERS: u8 = 4;

/// A body that holds no usable module.
#[derive(Debug, thiserror::Error)]
pub enum ModuleError {
    /// Reading, unpacking or writing.
    #[error("Wasm module: {0}")]
    Io(#[from] io::Error),
    /// Neither a module nor an archive.
    #[error("fetched Wasm binary is invalid: neither a module nor gzip or tar of one")]
    Invalid,
    /// Nothing in the archive.
    #[error("no {0} in the archive")]
    Missing(&'static str),
    /// More than `ISTIO_WASM_MAX_BINARY_SIZE_BYTES`.
    #[error("Wasm module is larger than {0} bytes (ISTIO_WASM_MAX_BINARY_SIZE_BYTES)")]
    TooLarge(u64),
}

/// What to take from a tar archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// The first file.
    First,
    /// `plugin.wasm`, as images have it.
    Plugin,
}

/// Writes the module in `source` to `target`; gives its SHA-256 in hex.
pub(super) fn unpack(
    source: &Path,
    target: &Path,
    entry: Entry,
    limit: u64,
) -> Result<String, ModuleError> {
    let mut out = Hashing {
        file: File::create(target)?,
        context: Context::new(&SHA256),
    };
    let mut body = BufReader::new(File::open(source)?);
    peel(&mut body, entry, limit, MAX_LAYERS, &mut out)?;
    out.file.flush()?;
    Ok(hex(out.context.finish().as_ref()))
}

/// Lower-case hex.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

struct Hashing {
    file: File,
    context: Context,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.context.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn peel(
    body: &mut dyn Read,
    entry: Entry,
    limit: u64,
    layers: u8,
    out: &mut Hashing,
) -> Result<(), ModuleError> {
    let mut head = Vec::new();
    let mut body = body;
    (&mut body).take(BLOCK).read_to_end(&mut head)?;
    let whole = Cursor::new(head.clone()).chain(body);
    // What an archive unpacks to is bounded too, whatever part of it is of interest.
    let mut whole = whole.take(limit.saturating_mul(2));
    if head.starts_with(WASM_MAGIC) {
        let written = io::copy(&mut whole.take(limit.saturating_add(1)), out)?;
        return if written > limit {
            Err(ModuleError::TooLarge(limit))
        } else {
            Ok(())
        };
    }
    let Some(layers) = layers.checked_sub(1) else {
        return Err(ModuleError::Invalid);
    };
    if head.starts_with(GZIP_MAGIC) {
        return peel(&mut GzDecoder::new(whole), entry, limit, layers, out);
    }
    let (place, magic) = TAR_MAGIC;
    if head
        .get(place..)
        .is_some_and(|rest| rest.starts_with(magic))
    {
        let mut archive = tar::Archive::new(&mut whole);
        for file in archive.entries()? {
            let mut file = file?;
            let wanted = file.header().entry_type().is_file()
                && (entry == Entry::First
                    || file.path()?.file_name() == Some("plugin.wasm".as_ref()));
            if wanted {
                return peel(&mut file, entry, limit, layers, out);
            }
        }
        return Err(ModuleError::Missing(match entry {
            Entry::First => "file",
            Entry::Plugin => "plugin.wasm",
        }));
    }
    Err(ModuleError::Invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &[u8] = b"\0asm\x01\0\0\0module";

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).expect("compressed");
        encoder.finish().expect("compressed")
    }

    fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (name, bytes) in files {
            let mut header = tar::Header::new_ustar();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            builder
                .append_data(&mut header, name, *bytes)
                .expect("added");
        }
        builder.into_inner().expect("archive")
    }

    fn unpacked(body: &[u8], entry: Entry, limit: u64) -> Result<Vec<u8>, String> {
        let dir = tempfile::tempdir().expect("folder");
        let (source, target) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::write(&source, body).expect("written");
        let sha = unpack(&source, &target, entry, limit).map_err(|e| e.to_string())?;
        let module = std::fs::read(target).expect("module");
        let digest = aws_lc_rs::digest::digest(&SHA256, &module);
        assert_eq!(sha, hex(digest.as_ref()));
        Ok(module)
    }

    #[test]
    fn archives_are_taken_off_in_any_order() {
        let first = tar(&[("other/x.wasm", MODULE), ("plugin.wasm", b"no")]);
        let named = tar(&[("readme", b"text"), ("./plugin.wasm", MODULE)]);
        for (body, entry) in [
            (MODULE.to_vec(), Entry::First),
            (gzip(MODULE), Entry::First),
            (first.clone(), Entry::First),
            (gzip(&first), Entry::First),
            (gzip(&tar(&[("a", &gzip(MODULE))])), Entry::First),
            (named.clone(), Entry::Plugin),
            (gzip(&named), Entry::Plugin),
        ] {
            assert_eq!(unpacked(&body, entry, 1 << 20), Ok(MODULE.to_vec()));
        }
    }

    #[test]
    fn what_is_no_module_too_large_or_cut_off_is_an_error() {
        let large = [MODULE, &[0; 10_000]].concat();
        let bomb = gzip(&tar(&[("filler", &[0; 200_000]), ("plugin.wasm", MODULE)]));
        let cut = gzip(MODULE);
        for (body, text) in [
            (b"<html>".to_vec(), "invalid"),
            (Vec::new(), "invalid"),
            (large.clone(), "larger than 1000 bytes"),
            (gzip(&large), "larger than 1000 bytes"),
            (tar(&[("a", b"x")]), "no plugin.wasm"),
            (bomb, "Wasm module: "),
            (cut[..cut.len() / 2].to_vec(), "Wasm module: "),
            (gzip(&gzip(&gzip(&gzip(&gzip(MODULE))))), "invalid"),
        ] {
            let error = unpacked(&body, Entry::Plugin, 1000).expect_err("refused");
            assert!(error.contains(text), "{error} instead of {text}");
        }
    }
}
